"""The options that say which server a command talks to, and with which key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from services.client.cli.console import Console
from services.client.client import Client
from services.client.endpoint import (
    ADDRESS_VARIABLE,
    API_KEY_VARIABLE,
    DEFAULT_ADDRESS,
    is_loopback,
)
from services.client.errors import ArgumentError, LimnerError
from services.client.retry import RetryPolicy

LOCAL_KEY_FILE = Path("limner-data/api-key")
"""Where `limner up` leaves the key of its first account, below the folder that it is started in."""

_PATIENCE_S = 120.0
"""A first start exports the graphs of its model, which takes about a minute."""

_SERVER = "Server"

AddressOption = Annotated[
    str,
    typer.Option(
        envvar=ADDRESS_VARIABLE, metavar="HOST:PORT", help="The server.", rich_help_panel=_SERVER
    ),
]
TlsOption = Annotated[
    bool, typer.Option("--tls", help="Connect with TLS.", rich_help_panel=_SERVER)
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"File with the API key. Without it {API_KEY_VARIABLE} counts, and for a server on "
        f"this machine the key that `limner up` left in {LOCAL_KEY_FILE}.",
        rich_help_panel=_SERVER,
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        min=0.001, metavar="SECONDS", help="Give up after so long.", rich_help_panel=_SERVER
    ),
]


def connect(
    address: str = DEFAULT_ADDRESS,
    *,
    tls: bool = False,
    key_file: Path | None = None,
    timeout_s: float | None = None,
    quiet: bool = False,
) -> Client:
    """Return a client for the options; a usage error when the key cannot be read or sent.

    A server that is starting, or away in the middle of a watch, is waited for, which is said unless
    `quiet`.
    Raises ArgumentError for an address that is none.
    """
    hint = None if key_file is None else "--key-file"
    try:
        key = _find_key(address, key_file)
        retry = RetryPolicy(patience_s=_PATIENCE_S, on_wait=None if quiet else _Waiting().tell)
        return Client(address, api_key=key, tls=tls, timeout_s=timeout_s, retry=retry)
    except OSError as error:
        raise typer.BadParameter(f"cannot read the key: {error}", param_hint=hint) from None
    except ArgumentError as error:
        if error.field != "api_key":
            raise
        wrong = f"cannot use the key: {error.description}"
        raise typer.BadParameter(wrong, param_hint=hint) from None


class _Waiting:
    """Says once that a server is waited for."""

    def __init__(self) -> None:
        self._is_told = False

    def tell(self, error: LimnerError) -> None:
        """Take another failure of a server that is waited for."""
        if not self._is_told:
            self._is_told = True
            line = f"{error}: waiting for up to {_PATIENCE_S:g} s"
            Console(stderr=True, soft_wrap=True).print(Text(line, style="yellow"))


def _find_key(address: str, key_file: Path | None) -> str | None:
    """Return the key to send; the local one never leaves this machine unless asked for by name."""
    if key_file is not None:
        key = _read(key_file)
        if not key:  # the key of the environment must not stand in for it
            raise ArgumentError("api_key", f"the file {key_file} is empty")
        return key
    from_environment = os.environ.get(API_KEY_VARIABLE)
    if from_environment:
        return from_environment
    if is_loopback(address) and LOCAL_KEY_FILE.is_file():
        return _read(LOCAL_KEY_FILE)
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except UnicodeDecodeError as error:
        raise ArgumentError("api_key", str(error)) from None
