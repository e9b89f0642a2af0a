"""The shared tile batcher; see `batcher.py`, and `scheduler.py` for the policy."""

from services.upscale.batching.batcher import Batcher
from services.upscale.batching.events import (
    BandFinished,
    EventSink,
    JobEvent,
    JobQueued,
    TilesProgressed,
)
from services.upscale.batching.intake import BatcherLimits, Reservation
from services.upscale.batching.job import Job
from services.upscale.batching.tiling import TilePlan, plan_tiles

__all__ = [
    "BandFinished",
    "Batcher",
    "BatcherLimits",
    "EventSink",
    "Job",
    "JobEvent",
    "JobQueued",
    "Reservation",
    "TilePlan",
    "TilesProgressed",
    "plan_tiles",
]
