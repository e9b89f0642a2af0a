import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.admission.headers import credits_text, standing_metadata, standings
from services.gateway.admission.store import Limit, Limits, Usage
from services.gateway.period import Period

LIMITS = Limits(
    requests_per_minute=60,
    burst=10,
    concurrent_requests=2,
    monthly_requests=100,
    monthly_millicredits=10_000,
)


def usage(**changes):
    values = {
        "now_ms": 1_796_083_200_000 - 90_500,  # a minute and a half before December
        "period": Period(year=2026, month=11),
        "bucket_units": None,
        "bucket_ms": 1_796_083_200_000 - 90_500,
        "running_count": 0,
        "request_count": 0,
        "charged_millicredits": 0,
        "held_millicredits": 0,
        "granted_millicredits": 0,
    }
    return Usage(**(values | changes))


@given(st.integers(0, 2**60))
def test_credits_are_written_exactly(millicredits):
    text = credits_text(millicredits)
    whole, _, rest = text.partition(".")
    assert int(whole) * 1000 + int(rest.ljust(3, "0")) == millicredits
    assert not rest.endswith("0")


@pytest.mark.parametrize(("millicredits", "text"), [(0, "0"), (1, "0.001"), (2500, "2.5")])
def test_credits_are_written_shortly(millicredits, text):
    assert credits_text(millicredits) == text


def test_a_fresh_account_has_everything():
    told = dict(standing_metadata(standings(LIMITS, usage())))
    assert told == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "10",
        "x-ratelimit-reset-requests": "0",
        "x-ratelimit-limit-concurrency": "2",
        "x-ratelimit-remaining-concurrency": "2",
        "x-ratelimit-reset-concurrency": "0",
        "x-ratelimit-limit-quota": "100",
        "x-ratelimit-remaining-quota": "100",
        "x-ratelimit-reset-quota": "91",
        "x-ratelimit-limit-credits": "10",
        "x-ratelimit-remaining-credits": "10",
        "x-ratelimit-reset-credits": "91",
    }


def test_what_runs_and_what_is_reserved_is_not_left():
    told = standings(
        LIMITS,
        usage(
            bucket_units=30_000,
            running_count=2,
            request_count=50,
            charged_millicredits=4_000,
            held_millicredits=1_500,
            granted_millicredits=500,
        ),
    )
    assert {limit: standing.remaining for limit, standing in told.items()} == {
        Limit.REQUESTS: "0",
        Limit.CONCURRENCY: "0",
        Limit.QUOTA: "48",
        Limit.CREDITS: "5",
    }
    assert told[Limit.CREDITS].limit == "10.5"
    assert told[Limit.REQUESTS].reset_s == 10  # 9.5 s until the bucket is full


def test_nothing_is_ever_negative():
    """A tier may be cut below what an account has used already."""
    spent = usage(bucket_units=0, running_count=5, request_count=500, charged_millicredits=10**9)
    assert {standing.remaining for standing in standings(LIMITS, spent).values()} == {"0"}


def test_less_than_a_tenth_is_near():
    def near(charged):
        return standings(LIMITS, usage(charged_millicredits=charged))[Limit.CREDITS].is_near

    assert not near(9_000)
    assert near(9_001)
