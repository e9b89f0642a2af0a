"""In-flight batching of denoising steps; see `batcher.py`, and `scheduler.py` for the policy."""

from services.diffusion.batching.batcher import Batcher
from services.diffusion.batching.events import (
    EventSink,
    JobEvent,
    JobProgressed,
    JobQueued,
    SampleFinished,
    SamplePreviewed,
)
from services.diffusion.batching.job import ImageSpec, Job
from services.diffusion.batching.limits import BatcherLimits

__all__ = [
    "Batcher",
    "BatcherLimits",
    "EventSink",
    "ImageSpec",
    "Job",
    "JobEvent",
    "JobProgressed",
    "JobQueued",
    "SampleFinished",
    "SamplePreviewed",
]
