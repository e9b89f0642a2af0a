"""`python -m services.upscale`: the upscale server as a process, set up by the environment."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading

from services.runtime.allocator import return_large_buffers
from services.runtime.logs import configure_logging
from services.runtime.metrics import new_registry, serve_metrics
from services.runtime.server import run_until_signal
from services.runtime.settings import load
from services.upscale.server import open_upscale_server
from services.upscale.settings import UpscaleSettings
from services.upscale.weights.errors import UpscalerLoadError


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code, 1 when the device or a model failed."""
    settings = load(UpscaleSettings)
    configure_logging(settings.log_level)
    return_large_buffers()
    try:
        return asyncio.run(_serve(settings))
    except (OSError, UpscalerLoadError) as error:
        print(f"the upscale server cannot start: {error}", file=sys.stderr)
        return 1


async def _serve(settings: UpscaleSettings) -> int:
    registry = new_registry("upscale")
    with serve_metrics(settings.metrics_address, registry):
        async with open_upscale_server(settings, registry=registry) as server:
            code = await run_until_signal(server.grpc, failed=server.failed)
            if code:
                error = server.failed.result()
                print(f"the upscale server failed: {error}", file=sys.stderr)
            return code


def _exit(code: int) -> None:
    if any(thread.daemon for thread in threading.enumerate()):
        # A model was still being loaded, in native code that a daemon thread cannot leave: the
        # interpreter's own shutdown would abort under it.
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _exit(main())
