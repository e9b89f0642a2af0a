"""Short ways to ask a store, for tests."""

from __future__ import annotations

from typing import Any

from services.gateway.admission.store import (
    AdmissionStore,
    Balance,
    Claim,
    Decision,
    Granted,
    Limit,
    Limits,
    Refused,
    Ticket,
)

LEASE_MS = 30_000


def limits(**changes: Any) -> Limits:
    """Limits that are in nobody's way, but for `changes`."""
    wide = {"requests_per_minute": 6_000, "burst": 1_000, "concurrent_requests": 1_000}
    return Limits(**(wide | changes))


def ticket(claim_id: str = "r1", *, owner: str = "o1", account: str = "acme") -> Ticket:
    return Ticket(account=account, claim_id=claim_id, owner=owner)


def claim(
    claim_id: str = "r1",
    *,
    owner: str = "o1",
    account: str = "acme",
    reserve: int = 0,
    lease_ms: int = LEASE_MS,
    enforced: bool = True,
    **changes: Any,
) -> Claim:
    return Claim(
        ticket=ticket(claim_id, owner=owner, account=account),
        limits=limits(**changes),
        reserve_millicredits=reserve,
        lease_ms=lease_ms,
        enforced=enforced,
    )


async def know(store: AdmissionStore, account: str = "acme", **amounts: int) -> None:
    """Tells the store a balance, of zeros if not told otherwise."""
    snapshot = await store.snapshot(account)
    balance = Balance(period=snapshot.usage.period, **amounts)
    assert await store.set_balance(account, balance, revision=snapshot.revision)


async def admit(store: AdmissionStore, *arguments: Any, **options: Any) -> Decision:
    return await store.admit(claim(*arguments, **options))


async def outcome(store: AdmissionStore, *arguments: Any, **options: Any) -> str:
    """`granted`, or the limit that was reached, or the decision's name."""
    decision = await store.admit(claim(*arguments, **options))
    match decision:
        case Granted():
            return "granted"
        case Refused(reached=Limit() as limit):
            return limit.value
    return type(decision).__name__


async def usage(store, account="acme"):
    return (await store.snapshot(account)).usage


async def close(store, claim_id="r1", *, owner="o1", requests=0, charged=0):
    return await store.close(
        ticket(claim_id, owner=owner), request_count=requests, charged_millicredits=charged
    )
