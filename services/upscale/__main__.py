"""`python -m services.upscale`: the upscale server as a process, set up by the environment."""

from __future__ import annotations

from functools import partial

from services.runtime.allocator import return_large_buffers
from services.runtime.device_server import serve_device
from services.runtime.logs import configure_logging
from services.runtime.settings import load
from services.upscale.server import open_upscale_server
from services.upscale.settings import UpscaleSettings
from services.upscale.weights.errors import UpscalerLoadError


def main() -> None:
    """Serve until SIGTERM or SIGINT; see `serve_device` for the exit code."""
    settings = load(UpscaleSettings)
    configure_logging(settings.log_level)
    return_large_buffers()
    serve_device(
        "upscale",
        settings.metrics_address,
        partial(open_upscale_server, settings),
        start_errors=(OSError, UpscalerLoadError),
    )


if __name__ == "__main__":
    main()
