"""The command's entry: its sub-commands, and one place where failures become a few lines.

Further sub-commands come from the entry-point group `limner.commands`, so that the client imports
no other service.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from services.client.cli.accounts import app as accounts
from services.client.cli.failure import describe_encode_error, describe_os_error, print_failure
from services.client.cli.generate import generate
from services.client.cli.keys import app as keys
from services.client.cli.listing import models, whoami
from services.client.cli.plugins import CommandGroup
from services.client.cli.standard_streams import flush_output
from services.client.cli.train import train
from services.client.cli.trainings import app as trainings
from services.client.cli.upscale import upscale
from services.client.cli.usage import audit, tiers, usage

app = typer.Typer(
    name="limner",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(upscale)
app.command()(train)
app.command()(models)
app.command()(whoami)
app.command()(usage)
app.command()(tiers)
app.command()(audit)
app.add_typer(trainings, name="trainings")
app.add_typer(accounts, name="accounts")
app.add_typer(keys, name="keys")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, the process's own by default, and return the exit code."""
    try:
        try:
            return _run(arguments)
        finally:
            flush_output()
    except BrokenPipeError:  # the reader, like `head`, has had enough
        return 1
    except OSError as error:
        print_failure(describe_os_error(error))
        return 1
    except UnicodeEncodeError as error:
        print_failure(describe_encode_error(error))
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"limner {version('limner')}\n")
        raise typer.Exit


@app.callback()
def limner(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Pictures to order, from your own Limner server.

    Try `limner demo` for a picture without any set-up, or `limner up` for a server on this machine.
    """
