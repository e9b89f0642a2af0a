"""`limner keys`: create, list and revoke API keys in the gateway's database.

It works on the database itself, so that the first key can be made before anything runs. A gateway
that is running takes note within two seconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError

from services.gateway.key_store import KeyRecord, KeyStore, KeyStoreError
from services.gateway.pepper import PepperError, load_or_create_pepper
from services.gateway.settings import KeySettings
from services.gateway.tables import metadata
from services.runtime.settings import load
from services.storage.database import create_schema, open_engine, sqlite_path

_Result = TypeVar("_Result")

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def create(
    account: Annotated[str, typer.Option(help="Account that the key belongs to.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    expires_in_days: Annotated[
        int | None, typer.Option(min=1, help="Days until it expires; never, when left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key, and the account if it is new. The key is shown this once."""
    settings = load(KeySettings)
    pepper = _pepper(settings)
    lifetime = None if expires_in_days is None else timedelta(days=expires_in_days)
    key, record = _on_store(
        settings,
        lambda store: store.create_key(
            account=account, name=name, pepper=pepper, lifetime=lifetime
        ),
    )
    if as_json:
        print(json.dumps({"key": key.text, **_fields(record)}, indent=2))
        return
    print(key.text)
    console = Console(stderr=True)
    console.print(f"Key {record.key_id} of account {account}. Store it now: it is not shown again.")


@app.command("list")
def list_keys(
    account: Annotated[str | None, typer.Option(help="Only the keys of this account.")] = None,
    as_json: AsJson = False,
) -> None:
    """List keys, oldest first, with their state."""
    records = _on_store(load(KeySettings), lambda store: store.list_keys(account=account))
    if as_json:
        print(json.dumps([_fields(record) for record in records], indent=2))
        return
    table = Table("ID", "Account", "Name", "State", "Created", "Expires")
    for record in records:
        table.add_row(
            record.key_id,
            record.account,
            record.name,
            record.state(datetime.now(UTC)),
            _minute(record.created),
            "never" if record.expires_at is None else _minute(record.expires_at),
        )
    Console().print(table if records else "There are no keys.")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, as `list` shows it.")],
    as_json: AsJson = False,
) -> None:
    """Revoke a key for good. Gateways refuse it within two seconds."""
    record = _on_store(load(KeySettings), lambda store: store.revoke_key(key_id))
    if as_json:
        print(json.dumps(_fields(record), indent=2))
        return
    print(f"Key {record.key_id} ({record.name}) of account {record.account} is revoked.")


def _on_store(settings: KeySettings, action: Callable[[KeyStore], Awaitable[_Result]]) -> _Result:
    """Runs `action` on the key store; what goes wrong ends the command with one line."""
    try:
        return asyncio.run(_with_store(settings.database_url.get_secret_value(), action))
    except (KeyStoreError, ValueError, OSError) as error:
        _fail(str(error))
    except SQLAlchemyError as error:
        _fail(f"the database cannot be used: {str(error).splitlines()[0]}")


async def _with_store(url: str, action: Callable[[KeyStore], Awaitable[_Result]]) -> _Result:
    engine = open_engine(url)
    try:
        await create_schema(engine, metadata)
        return await action(KeyStore(engine=engine))
    finally:
        await engine.dispose()


def _pepper(settings: KeySettings) -> bytes:
    """From the environment, else from the file beside the SQLite database."""
    if settings.key_pepper is not None:
        return settings.key_pepper.get_secret_value().encode()
    try:
        database = sqlite_path(settings.database_url.get_secret_value())
        if database is None:
            _fail("LIMNER_GATEWAY_KEY_PEPPER is required with a database that is not a file")
        return load_or_create_pepper(database.parent).encode()
    except (PepperError, ValueError, OSError) as error:
        _fail(str(error))


def _fields(record: KeyRecord) -> dict[str, str | None]:
    return {
        "id": record.key_id,
        "account": record.account,
        "name": record.name,
        "state": record.state(datetime.now(UTC)),
        "created": record.created.isoformat(),
        "revoked_at": None if record.revoked_at is None else record.revoked_at.isoformat(),
        "expires_at": None if record.expires_at is None else record.expires_at.isoformat(),
    }


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def _fail(message: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {message}", highlight=False)
    raise typer.Exit(1)
