"""`python -m services.diffusion`: the diffusion server as a process, set up by the environment."""

from __future__ import annotations

from functools import partial

from services.diffusion.server import open_diffusion_server
from services.diffusion.settings import DiffusionSettings
from services.runtime.device_server import serve_device
from services.runtime.logs import configure_logging
from services.runtime.settings import load


def main() -> None:
    """Serve until SIGTERM or SIGINT; see `serve_device` for the exit code."""
    settings = load(DiffusionSettings)
    configure_logging(settings.log_level)
    serve_device("diffusion", settings.metrics_address, partial(open_diffusion_server, settings))


if __name__ == "__main__":
    main()
