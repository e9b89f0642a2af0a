"""Both stores against a model of admission, whatever comes in whatever order.

The model keeps what happened (grants, ends, charges) and derives from it what must hold; it shares
no code with the stores. Never over a limit, never a credit lost or doubled.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.gateway.admission.store import (
    AlreadyRunning,
    Balance,
    BalanceUnknown,
    Expired,
    Granted,
    Limit,
    Refused,
    Renewal,
)
from services.gateway.period import Period
from tests.gateway.admission.asking import claim, ticket
from tests.gateway.admission.clocks import MID_NOVEMBER_MS, open_store

PER_MINUTE, BURST, CONCURRENT, REQUESTS, MILLICREDITS = 30, 3, 2, 6, 100
LEASE_MS = 10_000
DECEMBER_MS = round(Period(year=2026, month=12).start.timestamp()) * 1000

claim_ids = st.sampled_from(["r1", "r2", "r3", "r4"])
owners = st.sampled_from(["o1", "o2"])
amounts = st.integers(0, 60)


@dataclass
class Running:
    owner: str
    reserved: int
    expires_ms: int


class Model:
    """What must be true, from first principles."""

    def __init__(self) -> None:
        self.tokens = Fraction(BURST)
        self.refilled_ms: int | None = None
        self.running: dict[str, Running] = {}
        self.is_december = False
        self.is_known = False
        self.told = (0, 0, 0)  # requests, charged, granted
        self.charges: list[tuple[int, int]] = []  # of this month since told: requests, millicredits

    def at(self, now_ms: int) -> None:
        if now_ms >= DECEMBER_MS and not self.is_december:
            self.is_december = True
            self.told, self.charges = (0, 0, 0), []

    def expire(self, now_ms: int) -> Expired:
        gone = {name: r for name, r in self.running.items() if r.expires_ms <= now_ms}
        for name in gone:
            del self.running[name]
        self.is_known = self.is_known and not gone
        return Expired(lease_count=len(gone), millicredits=sum(r.reserved for r in gone.values()))

    @property
    def held(self) -> int:
        return sum(r.reserved for r in self.running.values())

    @property
    def requests(self) -> int:
        return self.told[0] + sum(count for count, _ in self.charges)

    @property
    def charged(self) -> int:
        return self.told[1] + sum(amount for _, amount in self.charges)

    def tokens_at(self, now_ms: int) -> Fraction:
        if self.refilled_ms is None:
            return Fraction(BURST)
        passed = max(0, now_ms - self.refilled_ms)
        return min(Fraction(BURST), self.tokens + Fraction(passed * PER_MINUTE, 60_000))

    def reached(self, reserve: int, now_ms: int) -> Limit | None:
        if self.charged + self.held + reserve > MILLICREDITS + self.told[2]:
            return Limit.CREDITS
        if self.requests + len(self.running) >= REQUESTS:
            return Limit.QUOTA
        if self.tokens_at(now_ms) < 1:
            return Limit.REQUESTS
        return Limit.CONCURRENCY if len(self.running) >= CONCURRENT else None


class Admission(RuleBasedStateMachine):
    """One account of one store, beside the model."""

    kind = "memory"
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store, self.clock = self.wait(open_store(self.kind, self.url))
        self.model = Model()

    def wait(self, verb: Any) -> Any:
        return self.runner.run(verb)

    def teardown(self) -> None:
        self.wait(self.store.close_store())
        self.wait(self.clock.close())
        self.runner.close()

    @property
    def now_ms(self) -> int:
        return self.clock.now_ms

    @initialize(is_near_the_end_of_the_month=st.booleans())
    def begin(self, is_near_the_end_of_the_month: bool) -> None:
        start_ms = DECEMBER_MS - 30_000 if is_near_the_end_of_the_month else MID_NOVEMBER_MS
        self.wait(self.clock.set(start_ms))
        self.learn_balance(0, 0, 0)

    @rule(
        name=claim_ids,
        owner=owners,
        reserve=amounts,
        enforced=st.sampled_from([True] * 5 + [False]),
    )
    def admit(self, name: str, owner: str, reserve: int, enforced: bool) -> None:
        model, now_ms = self.model, self.now_ms
        model.at(now_ms)
        expired = model.expire(now_ms)
        decision = self.wait(
            self.store.admit(
                claim(
                    name,
                    owner=owner,
                    reserve=reserve,
                    lease_ms=LEASE_MS,
                    enforced=enforced,
                    requests_per_minute=PER_MINUTE,
                    burst=BURST,
                    concurrent_requests=CONCURRENT,
                    monthly_requests=REQUESTS,
                    monthly_millicredits=MILLICREDITS,
                )
            )
        )
        assert decision.expired == expired
        holder = model.running.get(name)
        if holder is not None:
            same = holder.owner == owner
            assert isinstance(decision, Granted if same else AlreadyRunning)
            return
        if not model.is_known:
            assert isinstance(decision, BalanceUnknown)
            return
        if model.refilled_ms is not None and now_ms < model.refilled_ms:
            model.refilled_ms = now_ms
        reached = model.reached(reserve, now_ms)
        if reached is not None and enforced:
            assert isinstance(decision, Refused)
            assert decision.reached is reached
            if reached is Limit.REQUESTS:
                wait_ms = decision.retry_after_ms
                assert (
                    model.tokens_at(now_ms + wait_ms) >= 1 > model.tokens_at(now_ms + wait_ms - 1)
                )
            return
        assert isinstance(decision, Granted)
        assert decision.reached is reached
        model.tokens = max(Fraction(0), model.tokens_at(now_ms) - 1)
        model.refilled_ms = now_ms
        model.running[name] = Running(owner, reserve, now_ms + LEASE_MS)
        if enforced:
            assert len(model.running) <= CONCURRENT
            assert model.charged + model.held <= MILLICREDITS + model.told[2]
            assert model.requests + len(model.running) <= REQUESTS

    @rule(name=claim_ids, owner=owners, reserve=amounts)
    def renew(self, name: str, owner: str, reserve: int) -> None:
        self.model.at(self.now_ms)
        holder = self.model.running.get(name)
        renewal = self.wait(
            self.store.renew(
                ticket(name, owner=owner), reserve_millicredits=reserve, lease_ms=LEASE_MS
            )
        )
        expires_ms = self.now_ms + LEASE_MS
        if holder is None:
            assert renewal is Renewal.RESTORED
            self.model.running[name] = Running(owner, reserve, expires_ms)
        elif holder.owner != owner:
            assert renewal is Renewal.TAKEN
        else:
            assert renewal is Renewal.RENEWED
            holder.expires_ms = expires_ms

    @rule(
        name=claim_ids,
        owner=owners,
        charged=st.none() | amounts,
        is_doubtful=st.sampled_from([False] * 5 + [True]),
    )
    def close(self, name: str, owner: str, charged: int | None, is_doubtful: bool) -> None:
        """Settles, or refunds when `charged` is None."""
        self.model.at(self.now_ms)
        charge = (0, 0) if charged is None else (1, charged)
        holder = self.model.running.get(name)
        is_mine = holder is not None and holder.owner == owner
        verb = self.store.close(
            ticket(name, owner=owner),
            request_count=charge[0],
            charged_millicredits=charge[1],
            is_doubtful=is_doubtful,
        )
        assert self.wait(verb) is is_mine
        if is_doubtful or not is_mine:
            self.model.is_known = False
        if is_mine:
            del self.model.running[name]
            self.model.charges.append(charge)

    @rule(ms=st.sampled_from([1, 100, 1999, 2000, 9_999, 10_000, 30_000, -1, -5_000, -3_600_000]))
    def let_time_pass(self, ms: int) -> None:
        self.wait(self.clock.advance(ms))

    @rule()
    def sweep(self) -> None:
        self.model.at(self.now_ms)
        assert self.wait(self.store.sweep("acme")) == self.model.expire(self.now_ms)

    @rule(requests=st.integers(0, 3), charged=amounts, granted=st.integers(0, 50))
    def learn_balance(self, requests: int, charged: int, granted: int) -> None:
        self.model.at(self.now_ms)
        seen = self.wait(self.store.snapshot("acme"))
        balance = Balance(
            period=seen.usage.period,
            request_count=requests,
            charged_millicredits=charged,
            granted_millicredits=granted,
        )
        verb = self.store.set_balance("acme", balance, revision=seen.revision)
        assert self.wait(verb)
        self.model.told, self.model.charges = (requests, charged, granted), []
        self.model.is_known = True
        assert not self.wait(self.store.set_balance("acme", balance, revision=seen.revision))

    @rule(name=claim_ids)
    def learn_an_old_balance(self, name: str) -> None:
        """What was read before a lease changed is not taken."""
        seen = self.wait(self.store.snapshot("acme"))
        self.renew(name, "o1", 5)
        if seen.running != set(self.model.running):
            old = Balance(period=seen.usage.period, charged_millicredits=99)
            assert not self.wait(self.store.set_balance("acme", old, revision=seen.revision))

    @invariant()
    def the_store_agrees(self) -> None:
        model = self.model
        model.at(self.now_ms)
        seen = self.wait(self.store.snapshot("acme"))
        usage = seen.usage
        assert seen.is_known is model.is_known
        assert seen.running == set(model.running)
        assert usage.running_count == len(model.running)
        assert usage.held_millicredits == model.held
        assert usage.request_count == model.requests
        assert usage.charged_millicredits == model.charged
        assert usage.granted_millicredits == model.told[2]
        units = BURST * 60_000 if usage.bucket_units is None else usage.bucket_units
        assert Fraction(units, 60_000) == (
            model.tokens if model.refilled_ms is not None else Fraction(BURST)
        )


def run(kind: str, url: str, *, examples: int) -> None:
    machine = type(f"{kind.title()}Admission", (Admission,), {"kind": kind, "url": url})
    case = machine.TestCase
    case.settings = settings(
        settings.default, max_examples=examples, stateful_step_count=40, deadline=None
    )
    case().runTest()


def test_the_store_in_memory_does_as_the_model_does() -> None:
    run("memory", "", examples=150)


def test_the_store_in_redis_does_as_the_model_does(redis_server: Any) -> None:
    run("redis", redis_server.url, examples=40)
