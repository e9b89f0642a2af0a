"""`limner keys`: create, list, rotate and revoke API keys, and what other packages add.

The gateway's package adds `bootstrap`, which makes the first admin key without a running server.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Annotated

import typer
from rich.text import Text

from services.client.accounts import NewKey
from services.client.cli.console import Console
from services.client.cli.plugins import CommandGroup
from services.client.cli.remote import JsonOption, minute, print_json, with_server
from services.client.cli.tables import new_table, print_table
from services.client.client import Client
from services.client.enum_names import SCOPES


class KeyCommands(CommandGroup):
    """The commands below, then those of the entry points."""

    group = "limner.commands.keys"


app = typer.Typer(
    cls=KeyCommands,
    help="Create, list, rotate and revoke API keys. Needs an admin key; `bootstrap` makes one.",
    no_args_is_help=True,
)

_KeyId = Annotated[str, typer.Argument(help="Id of the key, as `list` shows it.")]


@app.command()
@with_server
def create(
    client: Client,
    account: Annotated[str, typer.Option(help="Account that the key belongs to.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    scopes: Annotated[
        str,
        typer.Option(
            metavar="SCOPE,…",
            help=f"Of {', '.join(SCOPES.names)}; all but admin when left out.",
        ),
    ] = "",
    lifetime: Annotated[
        int | None,
        typer.Option(
            "--expires-in-days",
            min=1,
            max=timedelta.max.days,
            metavar="DAYS",
            help="Days until it expires; never, when left out.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Create a key. It is shown this once."""
    named = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    span = None if lifetime is None else timedelta(days=lifetime)
    _show(client.admin.create_key(account, name, scopes=named, lifetime=span), as_json)


@app.command("list")
@with_server
def list_keys(
    client: Client,
    account: Annotated[str, typer.Option(help="Only the keys of this account.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List keys, oldest first, with their state."""
    found = list(client.admin.keys(account))
    if as_json:
        print_json(found)
        return
    headings = ("id", "account", "name", "scopes", "state", "expires", "last used")
    table = new_table(*headings, whole={"id"})
    for key in found:
        state = key.state if not key.replaced_by else f"{key.state}, replaced by {key.replaced_by}"
        cells = (
            *(key.id, key.account, key.name, ", ".join(key.scopes), state),
            minute(key.expires, never="never"),
            minute(key.last_used, never="not yet"),
        )
        table.add_row(*map(Text, cells))
    print_table(table, empty="There are no keys.")


@app.command()
@with_server
def rotate(
    client: Client,
    key_id: _KeyId,
    overlap: Annotated[
        float,
        typer.Option(
            "--overlap-hours",
            min=0,
            max=timedelta.max.days * 24,
            metavar="HOURS",
            help="Hours for which the old key stays good.",
        ),
    ] = 24.0,
    as_json: JsonOption = False,
) -> None:
    """Create a key in place of another, which expires after the overlap. It is shown this once."""
    _show(client.admin.rotate_key(key_id, overlap=timedelta(hours=overlap)), as_json)


@app.command()
@with_server
def revoke(client: Client, key_id: _KeyId, as_json: JsonOption = False) -> None:
    """Revoke a key for good. Gateways refuse it within two seconds."""
    key = client.admin.revoke_key(key_id)
    if as_json:
        print_json(key)
    else:
        sys.stdout.write(f"Key {key.id} ({key.name}) of account {key.account} is revoked.\n")


def _show(made: NewKey, as_json: bool) -> None:
    """Print the key alone on standard output, so that a script can take it."""
    if as_json:
        print_json(made)
        return
    sys.stdout.write(made.text + "\n")
    said = f"Key {made.key.id} of account {made.key.account}. Store it now: it is not shown again."
    if made.replaced is not None:
        until = minute(made.replaced.expires, never="")
        said += f" Key {made.replaced.id} is good until {until} UTC."
    Console(stderr=True, soft_wrap=True).print(Text(said))
