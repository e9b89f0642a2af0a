"""The token bucket beside another's: the GCRA of throttled-py, which decides the same by a formula.

Its token bucket cannot be the oracle: it counts whole seconds.
Times are multiples of an eighth of a second and rates such that its floating point is exact.
"""

import pytest
import throttled
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.admission.account_book import AccountBook
from services.gateway.admission.store import Balance, Claim, Granted, Limits, Ticket, month_of

EIGHTH_MS = 125
NOON_MS = 1_795_435_200_000
MIDDLE_S = 1000.0  # of its clock; 0 would mean "never used" to it


class Theirs:
    """throttled-py on a clock of ours."""

    def __init__(self, monkeypatch, limits):
        self.now_s = MIDDLE_S
        monkeypatch.setattr("throttled.rate_limiter.gcra.utils.now_mono_f", lambda: self.now_s)
        quota = throttled.per_min(limits.requests_per_minute, burst=limits.burst)
        self._throttle = throttled.Throttled(
            using="gcra", quota=quota, store=throttled.store.MemoryStore()
        )

    def admits(self):
        return not self._throttle.limit("acme").limited


class Ours:
    """An account of which nothing but the bucket can be in the way."""

    def __init__(self, limits):
        self.now_ms = NOON_MS
        self._limits = limits
        self._count = 0
        self._book = AccountBook(self.now_ms)
        revision = self._book.snapshot(self.now_ms).revision
        self._book.set_balance(Balance(period=month_of(self.now_ms)), revision, self.now_ms)

    def admits(self):
        self._count += 1
        ticket = Ticket(account="acme", claim_id=str(self._count), owner="o")
        claim = Claim(ticket=ticket, limits=self._limits, reserve_millicredits=0, lease_ms=10**12)
        return isinstance(self._book.admit(claim, self.now_ms), Granted)


def bucket(rate, burst):
    return Limits(requests_per_minute=rate, burst=burst, concurrent_requests=10**9)


@given(
    rate=st.sampled_from([60, 120, 240, 480]),
    burst=st.integers(1, 12),
    waits=st.lists(st.integers(0, 40), max_size=60),
)
def test_the_bucket_decides_as_gcra_does(rate, burst, waits):
    limits = bucket(rate, burst)
    with pytest.MonkeyPatch.context() as monkeypatch:
        theirs, ours = Theirs(monkeypatch, limits), Ours(limits)
        decided = []
        for eighths in waits:
            ours.now_ms += eighths * EIGHTH_MS
            theirs.now_s += eighths / 8
            decided.append((ours.admits(), theirs.admits()))
    assert [mine for mine, _ in decided] == [other for _, other in decided]


def test_a_hundred_requests_in_a_minute_fit_a_hundred_and_ten(monkeypatch):
    limits = bucket(110, 1)
    theirs, ours = Theirs(monkeypatch, limits), Ours(limits)
    admitted = []
    for _ in range(100):
        admitted.append((ours.admits(), theirs.admits()))
        ours.now_ms += 600
        theirs.now_s += 0.6
    assert admitted == [(True, True)] * 100
