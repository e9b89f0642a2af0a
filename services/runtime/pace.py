"""How fast the device is, as measured: what the scheduler and retry hints are told.

Owned by a batcher. Exponential averages over the last few dozen ticks, in seconds of the
batcher's clock. Written on the device thread, read from any.
"""

from __future__ import annotations

_SMOOTHING = 0.1
_UNMEASURED_RETRY_S = 1.0
_LEAST_RETRY_S, _LARGEST_RETRY_S = 0.1, 60.0


class Average:
    """An exponential average that starts with its first value."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, value: float) -> None:
        """Take `value` in."""
        old = self.value
        self.value = value if old is None else old + _SMOOTHING * (value - old)


class Pace:
    """Seconds of a tick and of a slot."""

    def __init__(self) -> None:
        self._tick_s = Average()
        self._slot_s = Average()

    def measured(self, *, tick_s: float, slot_count: int) -> None:
        """Take in a tick that called the model with `slot_count` slots."""
        self._tick_s.add(tick_s)
        self._slot_s.add(tick_s / slot_count)

    def ticks_in(self, seconds: float) -> float:
        """Ticks that fit in `seconds`; inf while nothing is measured."""
        tick_s = self._tick_s.value
        return seconds / tick_s if tick_s else float("inf")

    def retry_after_s(self, work: float) -> float:
        """Seconds in which `work` (slots times calls) is done: 0.1 to 60."""
        if self._slot_s.value is None:
            return _UNMEASURED_RETRY_S
        return min(max(work * self._slot_s.value, _LEAST_RETRY_S), _LARGEST_RETRY_S)
