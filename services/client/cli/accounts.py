"""`limner accounts`: create, list, change the tier, suspend, resume, grant credits."""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import Annotated

import typer
from rich.text import Text

from services.client.accounts import ManagedAccount
from services.client.cli.remote import JsonOption, credits, minute, print_json, with_server
from services.client.cli.tables import new_table, print_table
from services.client.client import Client

app = typer.Typer(help="Create and change accounts. Needs an admin key.", no_args_is_help=True)

_TOO_MANY = 10**18
"""Millicredits that a message may not hold; how many may be granted is the server's to say."""

_Account = Annotated[str, typer.Argument(help="Name of the account.")]


@app.command()
@with_server
def create(
    client: Client,
    name: Annotated[str, typer.Argument(metavar="ACCOUNT", help="Name of the account.")],
    tier: Annotated[str, typer.Option(help="Its tier; `free` when left out.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Create an account."""
    _tell(client.admin.create_account(name, tier=tier), as_json)


@app.command("list")
@with_server
def list_accounts(client: Client, as_json: JsonOption = False) -> None:
    """List all accounts with tier and state."""
    found = list(client.admin.accounts())
    if as_json:
        print_json(found)
        return
    table = new_table("account", "tier", "state", "created")
    for account in found:
        cells = (account.name, account.tier, _state(account), minute(account.created, never=""))
        table.add_row(*map(Text, cells))
    print_table(table, empty="There are no accounts.")


@app.command("set-tier")
@with_server
def set_tier(
    client: Client,
    account: _Account,
    tier: Annotated[str, typer.Argument(help="Name of the tier; `limner tiers` lists them.")],
    as_json: JsonOption = False,
) -> None:
    """Change an account's tier, from its next request on."""
    _tell(client.admin.set_tier(account, tier), as_json)


@app.command()
@with_server
def suspend(client: Client, account: _Account, as_json: JsonOption = False) -> None:
    """Shut all keys of an account out. Running requests end."""
    _tell(client.admin.suspend(account), as_json)


@app.command()
@with_server
def resume(client: Client, account: _Account, as_json: JsonOption = False) -> None:
    """Let the keys of a suspended account in again."""
    _tell(client.admin.resume(account), as_json)


@app.command()
@with_server
def grant(
    client: Client,
    account: _Account,
    millicredits: Annotated[
        str, typer.Argument(metavar="CREDITS", help="How many, like 25 or 0.5.")
    ],
    note: Annotated[str, typer.Option(help="Why, for the audit log.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Add credits to an account's current month; they end with it."""
    usage = client.admin.grant(account, _millicredits(millicredits), note=note)
    if as_json:
        print_json(usage)
        return
    granted = credits(usage.granted_millicredits)
    sys.stdout.write(f"{usage.account}: {granted} credits granted for {usage.period} in all\n")


def _millicredits(amount: str) -> int:
    try:
        millicredits = Decimal(amount) * 1000
        if 0 < millicredits < _TOO_MANY and millicredits % 1 == 0:
            return int(millicredits)
    except ArithmeticError:  # no number at all, or one that no Decimal holds
        pass
    message = "must be a positive number below 1e15 with at most three decimals"
    raise typer.BadParameter(f"{message}, got {amount!r}", param_hint="CREDITS")


def _tell(account: ManagedAccount, as_json: bool) -> None:
    if as_json:
        print_json(account)
    else:
        sys.stdout.write(f"{account.name}: tier {account.tier}, {_state(account)}\n")


def _state(account: ManagedAccount) -> str:
    return "active" if account.suspended is None else "suspended"
