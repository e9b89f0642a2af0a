"""The sub-commands `limner up` and `limner demo`.

The `limner` command finds them through the entry points `up` and `demo`.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from services.client import LimnerError
from services.client.cli.console import Console
from services.client.cli.failure import describe, describe_os_error
from services.client.cli.field_names import FieldNames
from services.client.cli.output import check_writable
from services.gateway.pepper import PepperError
from services.local.demo import draw
from services.local.display import print_death
from services.local.settings import DEFAULT_PORT, SetupError, SuiteSettings, plan_suite
from services.local.suite import ServiceDied, Stopped
from services.local.up import serve

_FAILED = 1
_INTERRUPTED = 130

ModelsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=FOLDER,…",
        help="Models to serve: folders or hub ids in diffusers layout. "
        "Without it LIMNER_DIFFUSION_MODELS counts, else the embedded model.",
    ),
]


def up(
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the gateway, on this machine only.")
    ] = DEFAULT_PORT,
    data_dir: Annotated[
        Path, typer.Option(help="Folder for the database, the first API key and the logs.")
    ] = Path("limner-data"),
    models: ModelsOption = None,
) -> None:
    """Run the whole suite on this machine until Ctrl-C.

    The first start makes an account and leaves its API key in DATA_DIR/api-key, where
    `limner generate` finds it. A second Ctrl-C does not wait for running requests.
    """
    console = Console(stderr=True, highlight=False)
    settings = _plan(console, data_dir, port=port, models=models)
    raise typer.Exit(_run(console, serve(settings, console), settings))


def demo(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")] = "a red apple",
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the PNG goes.")
    ] = Path("demo.png"),
    models: ModelsOption = None,
) -> None:
    """Draw one picture: starts the whole suite, asks it, and stops it again."""
    if output.suffix.lower() != ".png":
        raise typer.BadParameter("the demo makes a PNG: name it *.png", param_hint="--output")
    check_writable(output, option="--output")
    console = Console(stderr=True, highlight=False)
    data_dir = Path(tempfile.gettempdir()) / f"limner-demo-{secrets.token_hex(8)}"
    settings = _plan(console, data_dir, port=None, models=models)
    name_of = FieldNames(context)
    code = _run(console, draw(settings, prompt, output, console), settings, name_of)
    if code != _FAILED and data_dir.exists():  # after a failure the logs are worth keeping
        shutil.rmtree(data_dir)
    raise typer.Exit(code)


def _plan(
    console: Console, data_dir: Path, *, port: int | None, models: str | None
) -> SuiteSettings:
    try:
        if find_spec("diffusers") is None:
            raise SetupError("the diffusion server is not installed: pip install 'limner[local]'")
        return plan_suite(data_dir, port=port, models=models)
    except SetupError as error:
        _fail(console, f"limner: {error}")
        raise typer.Exit(_FAILED) from None


def _run(
    console: Console,
    work: Coroutine[None, None, None],
    settings: SuiteSettings,
    name_of: Callable[[str], str] = str,
) -> int:
    """Run to the end and return the exit code; a failure is told in a few lines."""
    try:
        asyncio.run(work)
        return 0
    except Stopped:
        return _INTERRUPTED
    except ServiceDied as death:
        print_death(console, str(death), death.log_tail)
    except LimnerError as error:
        _fail(console, describe(error, name_of))
    except SQLAlchemyError as error:
        _fail(console, f"limner: the database cannot be used: {str(error).splitlines()[0]}")
    except OSError as error:
        _fail(console, describe_os_error(error))
    except PepperError as error:
        _fail(console, f"limner: {error}")
    if settings.data.logs.is_dir():
        console.print(Text(f"  logs: {settings.data.logs}"), soft_wrap=True)
    return _FAILED


def _fail(console: Console, message: str) -> None:
    console.print(Text(message, style="red"), soft_wrap=True)
