"""Commands that talk to a server: the options for it, added to a function that takes a client.

    @with_server
    def tiers(client: Client, as_json: JsonOption = False) -> None: ...

The command has the function's own parameters, then those of `connect`. A failed call, and an
argument that no request can hold, end it with a few lines that name the option; for that the
parameters are named like the fields of the request, see `FieldNames`.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Concatenate

import typer

from services.client.cli.connection import (
    AddressOption,
    KeyFileOption,
    TimeoutOption,
    TlsOption,
    connect,
)
from services.client.cli.failure import describe, print_failure
from services.client.cli.field_names import FieldNames
from services.client.client import Client
from services.client.endpoint import DEFAULT_ADDRESS
from services.client.errors import ArgumentError, LimnerError

_FAILED = 1

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def with_server(function: Callable[Concatenate[Client, ...], None]) -> Callable[..., None]:
    """Return a command that connects, and calls `function` with the client."""

    @functools.wraps(function)
    def command(
        *arguments: Any,
        context: typer.Context,
        address: str,
        tls: bool,
        key_file: Path | None,
        timeout: float | None,
        **options: Any,
    ) -> None:
        name_of = FieldNames(context)
        try:
            with connect(
                address,
                tls=tls,
                key_file=key_file,
                timeout_s=timeout,
                quiet=options.get("quiet", False),
            ) as client:
                function(client, *arguments, **options)
        except ArgumentError as error:
            hint = name_of(error.field)
            raise typer.BadParameter(error.description, param_hint=hint) from None
        except LimnerError as error:
            print_failure(describe(error, name_of))
            raise typer.Exit(_FAILED) from None

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    parameters = [*own, *_server_parameters()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # for Typer
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    del command.__wrapped__  # Typer would look through to it
    return command


def print_json(value: Any) -> None:
    """Write dataclasses, also in lists, as JSON with points in time in ISO 8601."""
    sys.stdout.write(json.dumps(value, default=_plain, indent=2, ensure_ascii=False) + "\n")


def minute(moment: datetime | None, *, never: str) -> str:
    """Return a point in time in UTC for a table."""
    return never if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def credits(millicredits: int) -> str:
    """Return an amount in credits: whole ones, and thousandths where there are any."""
    whole, rest = divmod(millicredits, 1000)
    return f"{whole:,}.{rest:03}" if rest else f"{whole:,}"


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value))


def _server_parameters() -> list[inspect.Parameter]:
    kind = inspect.Parameter.KEYWORD_ONLY
    annotations: dict[str, tuple[Any, Any]] = {
        "context": (typer.Context, inspect.Parameter.empty),
        "address": (AddressOption, DEFAULT_ADDRESS),
        "tls": (TlsOption, False),
        "key_file": (KeyFileOption, None),
        "timeout": (TimeoutOption, None),
    }
    return [
        inspect.Parameter(name, kind, annotation=annotation, default=default)
        for name, (annotation, default) in annotations.items()
    ]
