"""When a failed call is made again: only while that is certain to be safe.

A call is repeated when the server was UNAVAILABLE and nothing of the answer had arrived. After the
first event a picture may be half drawn, and only the caller knows whether to start over. A full
queue is not retried either: the server asks for less, and callers should see that. A server that is
certain to be there can be waited for longer: one that says that it is not ready, as while it
starts, and one that answered before.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from services.client.errors import LimnerError, Unavailable

_NOT_READY = "NOT_READY"
_MOST_DOUBLINGS = 30
_LONGEST_TIMEOUT_S = 2.0**31
"""Longer is without end: grpc takes a deadline of centuries for one that has passed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often and how patiently a call is repeated."""

    max_attempts: int = 4
    """Attempts in all; 1 never repeats."""
    initial_delay_s: float = 0.25
    """Wait before the second attempt; doubles from one to the next, less up to half at random."""
    max_delay_s: float = 5.0
    """Longest wait. A server that asks for more gets no further attempt."""
    patience_s: float = 0.0
    """For so long a server that is not ready, or that answered before, is asked again, however
    often."""
    on_wait: Callable[[LimnerError], None] | None = None
    """Hears of every failure that such a server is waited for after."""

    def __post_init__(self) -> None:
        """Raise ValueError for a policy that makes no sense."""
        if self.max_attempts < 1 or self.initial_delay_s < 0 or self.max_delay_s < 0:
            raise ValueError("max_attempts is at least 1 and delays are not negative")


class Attempts:
    """The attempts of one call, under one deadline for all of them together."""

    def __init__(self, policy: RetryPolicy, timeout_s: float | None) -> None:
        self._policy = policy
        if timeout_s is not None and timeout_s > _LONGEST_TIMEOUT_S:
            timeout_s = None
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._patient_until = 0.0
        self._has_answered = False
        self._failed_count = 0

    def remaining_s(self) -> float | None:
        """Return the seconds left for the next attempt, None without a deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def succeeded(self) -> None:
        """Begin to count anew: something of the answer has arrived, and may be asked for again."""
        self._failed_count = 0
        self._has_answered = True

    def delay_s(self, error: LimnerError, *, answered: bool) -> float:
        """Return how long to wait before the next attempt; raise `error` when there is none.

        `answered`: whether any part of the answer had arrived.
        """
        self._failed_count += 1
        if self._failed_count == 1:
            self._patient_until = time.monotonic() + self._policy.patience_s
        if answered or not isinstance(error, Unavailable):
            raise error
        doublings = min(self._failed_count - 1, _MOST_DOUBLINGS)
        backoff_s = self._policy.initial_delay_s * 2.0**doublings
        backoff_s = min(backoff_s, self._policy.max_delay_s) * random.uniform(0.5, 1.0)
        delay_s = max(backoff_s, error.retry_after_s or 0.0)
        remaining_s = self.remaining_s()
        out_of_time = remaining_s is not None and delay_s >= remaining_s
        impatient = delay_s > self._policy.max_delay_s
        is_there = self._has_answered or error.reason == _NOT_READY
        waits = is_there and time.monotonic() < self._patient_until
        if out_of_time or impatient or not (waits or self._attempts_are_left()):
            raise error
        if waits and self._policy.on_wait is not None:
            self._policy.on_wait(error)
        return delay_s

    def _attempts_are_left(self) -> bool:
        return self._failed_count < self._policy.max_attempts
