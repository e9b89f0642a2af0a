"""`limner usage`, `tiers` and `audit`: what was used, what is allowed, who changed what."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.text import Text

from services.client.accounts import Usage
from services.client.cli.remote import JsonOption, credits, minute, print_json, with_server
from services.client.cli.tables import new_table, print_table
from services.client.client import Client

_UNLIMITED = "unlimited"
_NO_LIMIT = "–"
_MOST = 2**31 - 1
"""What a tier says that limits nothing: the contract's counts are 32-bit."""


@with_server
def usage(
    client: Client,
    account: Annotated[
        str, typer.Option(help="Another account than the caller's; needs an admin key.")
    ] = "",
    period: Annotated[
        str, typer.Option("--month", metavar="YYYY-MM", help="Another month, in UTC.")
    ] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Go on and show changes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the requests and credits of a month."""
    if watch and (account or period):
        raise typer.BadParameter("shows the caller's current month only", param_hint="--watch")
    show = print_json if as_json else _print_usage
    if watch:
        for current in client.watch_usage():
            show(current)
    elif account:
        show(client.admin.usage(account, period))
    else:
        show(client.usage(period))


@with_server
def tiers(client: Client, as_json: JsonOption = False) -> None:
    """List the tiers with their limits. Needs an admin key."""
    found = client.admin.tiers()
    if as_json:
        print_json(found)
        return
    headings = ("tier", "a minute", "burst", "at once", "requests", "credits", "MP", "steps")
    table = new_table(
        *headings,
        "models",
        whole=headings,
        caption="at once: running requests; requests and credits: a month; pictures of up to so"
        " many megapixels and steps; –: no limit",
    )
    for tier in found:
        budget = tier.monthly_millicredits
        cells = (
            f"{tier.name} (shadow)" if tier.shadow else tier.name,
            _count(tier.requests_per_minute),
            _count(tier.burst),
            _count(tier.concurrent_requests),
            _count(tier.monthly_requests),
            _NO_LIMIT if budget is None else credits(budget),
            _NO_LIMIT if tier.max_pixels >= _MOST else f"{tier.max_pixels / 1e6:.1f}",
            _count(tier.max_step_count),
            ", ".join(tier.models),
        )
        table.add_row(*map(Text, cells))
    print_table(table, empty="There are no tiers.")


@with_server
def audit(
    client: Client,
    account: Annotated[str, typer.Option(help="Only changes of this account.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List changes of accounts, keys and credits. Needs an admin key."""
    found = client.admin.audit_entries(account, limit=limit)
    if as_json:
        print_json(found)
        return
    table = new_table("time (UTC)", "by", "change", "of", "details", whole={"by", "change", "of"})
    for entry in found:
        cells = (
            minute(entry.time, never=""),
            f"{entry.actor_account}\n{entry.actor_key_id}".strip(),
            entry.action,
            f"{entry.account}\n{entry.key_id}".strip(),
            ", ".join(f"{name}={json.dumps(value)}" for name, value in entry.details.items()),
        )
        table.add_row(*map(Text, cells))
    print_table(table, empty="There are no changes.")


def _print_usage(found: Usage) -> None:
    table = new_table("", "used", "limit", "granted", "left")
    table.title = f"{found.account}, tier {found.tier}, {found.period}"
    for column in table.columns[1:]:
        column.justify = "right"
    requests = found.request_limit
    left = None if requests is None else max(0, requests - found.request_count)
    table.add_row("requests", f"{found.request_count:,}", _number(requests), "", _number(left))
    table.add_row(
        "credits",
        credits(found.charged_millicredits),
        _credits(found.credit_limit_millicredits),
        credits(found.granted_millicredits),
        _credits(found.remaining_millicredits),
    )
    table.caption = f"begins anew on {minute(found.end, never='')} UTC"
    print_table(table, empty="")


def _count(limit: int | None) -> str:
    return _NO_LIMIT if limit is None or limit >= _MOST else f"{limit:,}"


def _number(count: int | None) -> str:
    return _UNLIMITED if count is None else f"{count:,}"


def _credits(millicredits: int | None) -> str:
    return _UNLIMITED if millicredits is None else credits(millicredits)
