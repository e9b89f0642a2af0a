"""What a batcher may take on; comes from the settings of the process."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class BatcherLimits:
    """What the batcher may take on."""

    max_batch_rows: int | None = None
    """Slots of a denoiser call, at least 2; None: what each model advises."""
    max_queued_requests: int = 256
    """Requests that may wait for their first call."""
    max_decode_rows: int = 4
    """Pictures decoded between two denoiser calls."""

    def __post_init__(self) -> None:
        if self.max_batch_rows is not None and self.max_batch_rows < 2:
            raise ValueError("max_batch_rows must be at least 2: a guided row takes two")
        if self.max_queued_requests < 1 or self.max_decode_rows < 1:
            raise ValueError("max_queued_requests and max_decode_rows must be at least 1")
