"""`limner keys bootstrap`: the first admin key, made in the gateway's database itself.

It works before anything runs, and when all admin keys are lost. Everything else is done over the
admin service, by `limner accounts` and `limner keys`. A gateway that runs takes note of the key
within two seconds.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import timedelta
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from services.gateway.audit import Actor
from services.gateway.key_format import NewKey
from services.gateway.key_store import KeyRecord, KeyStore
from services.gateway.names import MAX_KEY_LIFETIME, check_account, check_key_name
from services.gateway.pepper import PepperError, load_or_create_pepper
from services.gateway.schema import migrate
from services.gateway.scopes import Scope, join_scopes, split_scopes
from services.gateway.settings import KeySettings
from services.gateway.tiers import UNLIMITED_TIER
from services.runtime.errors import InvalidRequestError
from services.runtime.settings import load
from services.storage.database import open_engine, sqlite_path


def bootstrap(
    account: Annotated[
        str, typer.Option(help="Account that the key belongs to; made if it is new.")
    ] = "admin",
    name: Annotated[str, typer.Option(help="What the key is for.")] = "bootstrap",
    scopes: Annotated[
        str,
        typer.Option(metavar="SCOPE,…", help="Of admin, generate, train, upscale."),
    ] = "admin",
    expires_in_days: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_KEY_LIFETIME.days,
            metavar="DAYS",
            help="Days until it expires; never, when left out.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the first admin key, in the gateway's database itself. It is shown this once.

    The database is LIMNER_GATEWAY_DATABASE_URL, with the key pepper in LIMNER_GATEWAY_KEY_PEPPER or
    in the file beside a SQLite database. The command is in the audit log.
    """
    settings = load(KeySettings)
    lifetime = None if expires_in_days is None else timedelta(days=expires_in_days)
    try:
        _check(account, name)
        wanted = split_scopes(scopes)
        making = _make(settings, account, name, wanted, lifetime)
        key, record = asyncio.run(making)
    except InvalidRequestError as error:
        _fail(str(error))
    except (ValueError, OSError, PepperError) as error:
        _fail(str(error))
    except SQLAlchemyError as error:
        _fail(f"the database cannot be used: {str(error).splitlines()[0]}")
    if as_json:
        print(json.dumps({"key": key.text, **_fields(record)}, indent=2))
        return
    print(key.text)
    Console(stderr=True, soft_wrap=True).print(
        f"Key {record.key_id} of account {account}, scopes {join_scopes(record.scopes)}. "
        "Store it now: it is not shown again."
    )


def _check(account: str, name: str) -> None:
    violations = [*check_account("--account", account), *check_key_name("--name", name)]
    if violations:
        raise InvalidRequestError(violations)


async def _make(
    settings: KeySettings,
    account: str,
    name: str,
    scopes: frozenset[Scope],
    lifetime: timedelta | None,
) -> tuple[NewKey, KeyRecord]:
    url = settings.database_url.get_secret_value()
    pepper = _pepper(settings, url)
    engine = open_engine(url)
    try:
        await migrate(engine)
        return await KeyStore(engine=engine).create_key(
            account=account,
            name=name,
            pepper=pepper,
            actor=Actor(account="limner keys bootstrap", key_id="", request_id=uuid.uuid4().hex),
            scopes=scopes,
            lifetime=lifetime,
            new_account_tier=UNLIMITED_TIER,
        )
    finally:
        await engine.dispose()


def _pepper(settings: KeySettings, url: str) -> bytes:
    """From the environment, else from the file beside the SQLite database."""
    if settings.key_pepper is not None:
        return settings.key_pepper.get_secret_value().encode()
    try:
        database = sqlite_path(url)
    except ArgumentError as error:
        raise ValueError("not a database URL that SQLAlchemy understands") from error
    if database is None:
        raise ValueError("LIMNER_GATEWAY_KEY_PEPPER is required with a database that is not a file")
    return load_or_create_pepper(database.parent).encode()


def _fields(record: KeyRecord) -> dict[str, object]:
    return {
        "id": record.key_id,
        "account": record.account,
        "name": record.name,
        "scopes": sorted(record.scopes),
        "created": record.created.isoformat(),
        "expires_at": None if record.expires_at is None else record.expires_at.isoformat(),
    }


def _fail(message: str) -> NoReturn:
    line = Text.assemble(("error:", "red"), " ", message)
    Console(stderr=True, soft_wrap=True).print(line)
    raise typer.Exit(1)
