"""`limner accounts`, `keys`, `tiers`, `usage`, `audit` and their SDK, at a real gateway."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.client import AsyncClient, Client, LimnerError, NotFound, Usage
from services.client.cli.app import run
from services.client.cli.remote import credits
from services.gateway.key_format import is_well_formed
from services.gateway.ledger import Ledger
from tests.gateway.harness import Harness, running_gateway
from tests.gateway.waiting import until

Limner = Callable[..., Awaitable[int]]


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Harness]:
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False) as running:
        yield running


@pytest.fixture
def address(door: Harness) -> str:
    return f"127.0.0.1:{door.gateway.port}"


@pytest.fixture
def limner(door: Harness, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Limner:
    """Runs a command line against the gateway, with an admin key."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIMNER_ADDRESS", address)
    monkeypatch.setenv("LIMNER_API_KEY", door.key)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: asyncio.to_thread(run, list(arguments))


@pytest.fixture
def said(limner: Limner, capsys: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[Any]]:
    """Runs a command with --json and returns what it printed."""

    async def said(*arguments: str) -> Any:
        assert await limner(*arguments, "--json") == 0
        return json.loads(capsys.readouterr().out)

    return said


async def charge(door: Harness, millicredits: int, request_id: str = "r1") -> None:
    await Ledger(engine=door.store.engine).charge(
        account="acme",
        request_id=request_id,
        item="artifact-0",
        millicredits=millicredits,
        service="generation",
        model="m",
        at=datetime.now(UTC),
    )


async def test_an_account_from_its_creation_to_its_suspension(
    limner: Limner, said: Callable[..., Awaitable[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert await limner("accounts", "create", "research", "--tier", "pro") == 0
    assert capsys.readouterr().out == "research: tier pro, active\n"
    assert await limner("accounts", "set-tier", "research", "free") == 0
    assert await limner("accounts", "suspend", "research") == 0
    assert capsys.readouterr().out.endswith("research: tier free, suspended\n")
    assert await limner("accounts", "list") == 0
    table = capsys.readouterr().out
    assert all(text in table for text in ("acme", "unlimited", "research", "suspended"))
    assert (await said("accounts", "resume", "research"))["suspended"] is None
    listed = await said("accounts", "list")
    assert [account["name"] for account in listed] == ["acme", "research"]


async def test_a_new_key_alone_is_on_stdout(
    limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await limner("keys", "create", "--account", "acme", "--scopes", "train,upscale") == 0
    printed = capsys.readouterr()
    assert is_well_formed(printed.out.strip())
    assert "not shown again" in printed.err
    assert printed.out.strip() not in printed.err
    assert await limner("keys", "list") == 0
    table = capsys.readouterr().out
    assert "upscale, train" in table
    assert printed.out.split("_")[3] not in table


async def test_names_and_points_in_time_are_whole_in_a_narrow_terminal(
    door: Harness,
    limner: Limner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert await limner("keys", "list") == 0
    keys = capsys.readouterr().out
    assert {door.key_id, "acme", "generate,", "upscale,", "never"} <= set(keys.split())
    assert await limner("audit") == 0
    changes = capsys.readouterr().out
    assert {"key.create", door.key_id, f"{datetime.now(UTC):%Y-%m-%d}"} <= set(changes.split())
    assert max(map(len, (keys + changes).splitlines())) <= 80


async def test_output_that_is_read_by_a_program_has_a_row_a_line(
    door: Harness,
    limner: Limner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("COLUMNS")
    assert await limner("keys", "list") == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if door.key_id in line]
    assert "generate, upscale, train, admin" in row
    assert await limner("keys", "list", "--account", "nobody") == 0
    assert capsys.readouterr().out == "There are no keys.\n"


async def test_a_key_is_rotated_and_revoked(
    limner: Limner, said: Callable[..., Awaitable[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    made = await said("keys", "create", "--account", "acme", "--expires-in-days", "30")
    assert made["replaced"] is None
    rotated = await said("keys", "rotate", made["key"]["id"], "--overlap-hours", "0.5")
    assert is_well_formed(rotated["text"])
    assert rotated["replaced"]["replaced_by"] == rotated["key"]["id"]
    ends = datetime.fromisoformat(rotated["replaced"]["expires"])
    assert ends - datetime.fromisoformat(rotated["key"]["created"]) == timedelta(minutes=30)
    assert (await said("keys", "revoke", made["key"]["id"]))["state"] == "revoked"
    states = {key["id"]: key["state"] for key in await said("keys", "list", "--account", "acme")}
    assert states[made["key"]["id"]] == "revoked"
    assert states[rotated["key"]["id"]] == "active"
    assert await limner("keys", "revoke", made["key"]["id"]) == 1
    assert "was revoked already" in capsys.readouterr().err


async def test_what_cannot_be_done_is_a_few_lines_and_exit_code_1(
    limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await limner("accounts", "create", "No Good", "--tier", "gold") == 1
    error = capsys.readouterr().err
    assert "ACCOUNT: an account's name is 1 to 100 characters" in error
    assert "--tier: there is no tier 'gold'; there is: enterprise, free, pro, unlimited" in error
    assert await limner("keys", "create", "--account", "nobody") == 1
    assert "there is no account 'nobody'" in capsys.readouterr().err
    assert await limner("keys", "create", "--account", "acme", "--scopes", "root") == 2
    assert "--scopes: unknown scope 'root'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("keys create --account acme --expires-in-days 99999", "--expires-in-days: must be"),
        ("keys rotate aaaaaaaaaaaa --overlap-hours 99999", "--overlap-hours: must be"),
        ("keys rotate short", "KEY_ID: is the id of a key"),
        ("accounts grant acme 1e14", "CREDITS: must be 0.001 to 1,000,000,000 credits, got 100"),
        ("accounts set-tier acme gold", "TIER: there is no tier 'gold'"),
        ("usage --month 2026-13", "--month: "),
        ("audit --account A", "--account: an account's name is"),
    ],
)
async def test_a_refusal_names_the_option_that_was_typed(
    limner: Limner, capsys: pytest.CaptureFixture[str], line: str, refusal: str
) -> None:
    assert await limner(*line.split()) == 1
    assert f"\n  {refusal}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "amount", ["0", "-1", "0.0001", "much", "nan", "inf", "1e-4", "1e20", "1e30", "1e9999999"]
)
async def test_an_amount_that_is_no_number_of_credits_is_wrong_usage(
    limner: Limner, capsys: pytest.CaptureFixture[str], amount: str
) -> None:
    assert await limner("accounts", "grant", "acme", "--", amount) == 2
    assert "positive number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("create --account acme --expires-in-days 99999999999999", "--expires-in-days"),
        ("rotate some-key --overlap-hours 1e12", "--overlap-hours"),
        ("rotate some-key --overlap-hours inf", "--overlap-hours"),
    ],
)
async def test_a_time_that_no_message_holds_is_wrong_usage(
    limner: Limner, capsys: pytest.CaptureFixture[str], line: str, option: str
) -> None:
    assert await limner("keys", *line.split()) == 2
    assert f"Invalid value for '{option}'" in capsys.readouterr().err


async def test_usage_is_a_table_of_what_was_used_and_what_is_left(
    door: Harness, limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    await limner("accounts", "set-tier", "acme", "free")
    await charge(door, 12_345)
    assert await limner("accounts", "grant", "acme", "2.5", "--note", "demo") == 0
    assert "2.500 credits granted" in capsys.readouterr().out
    assert await limner("usage") == 0
    table = capsys.readouterr().out
    assert all(text in table for text in ("acme, tier free", "12.345", "500", "2.500", "490.155"))
    assert all(text in table for text in ("1,000", "999", "begins anew on"))


async def test_usage_of_another_account_and_month_as_json(
    said: Callable[..., Awaitable[Any]], limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    await said("accounts", "create", "research")
    usage = await said("usage", "--account", "research", "--month", "2020-02")
    assert (usage["account"], usage["period"], usage["request_count"]) == ("research", "2020-02", 0)
    assert usage["end"] == "2020-03-01T00:00:00+00:00"
    assert await limner("usage", "--watch", "--month", "2020-02") == 2
    assert "current month only" in capsys.readouterr().err


async def test_tiers_and_audit_are_tables(
    limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await limner("tiers") == 0
    table = capsys.readouterr().out
    assert all(text in table for text in ("enterprise", "free", "pro", "unlimited", "25,000"))
    await limner("accounts", "create", "research")
    assert await limner("audit", "--limit", "1") == 0
    table = capsys.readouterr().out
    assert "account.create" in table
    assert "research" in table
    assert "key.create" not in table


async def test_whoami_tells_tier_and_scopes(
    limner: Limner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await limner("whoami") == 0
    assert "tier unlimited, scopes generate, upscale, train, admin" in capsys.readouterr().out


async def test_both_clients_tell_usage(door: Harness, address: str) -> None:
    await charge(door, 5)

    def ask() -> Usage:
        with Client(address, api_key=door.key) as client:
            return client.usage()

    async with AsyncClient(address, api_key=door.key) as client:
        usage = await client.usage()
        assert (await client.usage("2020-01")).request_count == 0
    assert usage == await asyncio.to_thread(ask)
    assert (usage.account, usage.charged_millicredits, usage.request_limit) == ("acme", 5, None)


async def test_both_clients_watch_usage_until_they_close(door: Harness, address: str) -> None:
    begun = threading.Event()

    def watch() -> list[int]:
        with Client(address, api_key=door.key, timeout_s=60) as client:
            updates = client.watch_usage(interval_s=1)
            first = next(updates)
            begun.set()
            return [first.request_count, next(updates).request_count]

    watching = asyncio.create_task(asyncio.to_thread(watch))
    async with AsyncClient(address, api_key=door.key, timeout_s=60) as client:
        updates = aiter(client.watch_usage(interval_s=1))
        first = await anext(updates)
        await until(begun.is_set)
        await charge(door, 5)
        assert (first.request_count, (await anext(updates)).request_count) == (0, 1)
        await updates.aclose()  # type: ignore[attr-defined]
    assert await watching == [0, 1]


async def test_a_watch_that_fails_is_an_error_of_the_sdk(address: str) -> None:
    def watch() -> Usage:
        with Client(address, api_key="no key") as client:
            return next(iter(client.watch_usage()))

    with pytest.raises(LimnerError) as raised:
        await asyncio.to_thread(watch)
    assert raised.value.reason == "KEY_MALFORMED"


async def test_lists_of_the_sdk_go_on_to_the_last_page(
    door: Harness, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.client.admin._PAGE_SIZE", 2)

    def administer() -> tuple[list[str], int, int]:
        with Client(address, api_key=door.key) as client:
            for number in range(4):
                client.admin.create_account(f"a{number}")
                client.admin.create_key(f"a{number}", "n", scopes=["train"])
            names = [account.name for account in client.admin.accounts()]
            keys = list(client.admin.keys())
            return names, len(keys), len(client.admin.audit_entries(limit=5))

    names, key_count, entry_count = await asyncio.to_thread(administer)
    assert names == ["a0", "a1", "a2", "a3", "acme"]
    assert (key_count, entry_count) == (5, 5)


async def test_a_change_is_never_repeated_by_itself(door: Harness, address: str) -> None:
    async with door.store.engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE accounts RENAME TO hidden")

    def create() -> None:
        with Client(address, api_key=door.key) as client:
            client.admin.create_account("research")

    with pytest.raises(LimnerError) as raised:
        await asyncio.to_thread(create)
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE
    async with door.store.engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE hidden RENAME TO accounts")
    labels = {"grpc_service": "limner.v1.AdminService", "grpc_method": "CreateAccount"}
    assert door.metric("grpc_server_started_total", grpc_type="unary", **labels) == 1


async def test_what_does_not_exist_is_not_found(door: Harness, address: str) -> None:
    def suspend() -> None:
        with Client(address, api_key=door.key) as client:
            client.admin.suspend("nobody")

    with pytest.raises(NotFound):
        await asyncio.to_thread(suspend)


@pytest.mark.parametrize(
    ("millicredits", "text"),
    [(0, "0"), (5, "0.005"), (1000, "1"), (1_234_567_890, "1,234,567.890")],
)
def test_credits_are_shown_with_their_thousandths(millicredits: int, text: str) -> None:
    assert credits(millicredits) == text
