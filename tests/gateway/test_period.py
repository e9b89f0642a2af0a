from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.period import Period

MOMENTS = st.datetimes(
    min_value=datetime(2, 1, 1), max_value=datetime(9990, 1, 1), timezones=st.timezones()
)


@given(MOMENTS)
def test_every_moment_is_within_its_period_and_no_other(moment):
    period = Period.containing(moment)
    assert period.start <= moment < period.end
    assert Period.containing(period.start) == period
    assert Period.containing(period.end) != period
    assert Period.containing(period.end - timedelta(microseconds=1)) == period


@given(MOMENTS)
def test_a_period_comes_back_from_its_text(moment):
    period = Period.containing(moment)
    assert Period.parse(str(period)) == period


def test_december_is_followed_by_january():
    assert Period(year=2026, month=12).end == datetime(2027, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["", "2026", "2026-1", "2026-13", "2026-00", "0000-01", "2026-11-01", " 2026-11", "٢٠٢٦-١١"],
)
def test_what_is_not_a_month_is_refused(text):
    with pytest.raises(ValueError, match="month"):
        Period.parse(text)


def test_a_moment_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="without a time zone"):
        Period.containing(datetime(2026, 1, 1))
