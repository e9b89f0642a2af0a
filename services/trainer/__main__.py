"""`python -m services.trainer`: the trainer as a process, set up by the environment."""

from __future__ import annotations

import asyncio
import sys

from sqlalchemy.exc import SQLAlchemyError

from services.runtime.logs import configure_logging
from services.runtime.metrics import new_registry, serve_metrics
from services.runtime.server import run_until_signal
from services.runtime.settings import load
from services.trainer.server import open_trainer_server
from services.trainer.settings import TrainerSettings


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code, 1 when the supervisor failed."""
    settings = load(TrainerSettings)
    configure_logging(settings.log_level)
    try:
        return asyncio.run(_serve(settings))
    except (ValueError, OSError, SQLAlchemyError) as error:
        print(f"the trainer cannot start: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1


async def _serve(settings: TrainerSettings) -> int:
    registry = new_registry("trainer")
    with serve_metrics(settings.metrics_address, registry):
        async with open_trainer_server(settings, registry=registry) as server:
            code = await run_until_signal(server.grpc, failed=server.failed)
            if code:
                print(f"the trainer failed: {server.failed.result()}", file=sys.stderr)
            return code


if __name__ == "__main__":
    sys.exit(main())
