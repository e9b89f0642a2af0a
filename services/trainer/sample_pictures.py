"""Sample pictures of a run, read for those who watch it. Blocks: callers use a thread."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from services.trainer.job import TrainingJob

MAX_SAMPLE_BYTES = 3 * 2**20
_PLACE = re.compile(r"samples/step-(\d{1,9})/(\d{1,3})\.png", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePicture:
    """A picture that the model drew on the way."""

    step: int
    index: int
    data: bytes
    """A PNG file."""


def new_samples(job: TrainingJob, shown: set[str]) -> list[SamplePicture]:
    """The newest sample pictures without those in `shown`, to which they are added.

    A picture that is gone or too large to be sent is left out.
    """
    pictures: list[SamplePicture] = []
    for name in job.progress.samples:
        place = _PLACE.fullmatch(name)
        if name in shown or place is None:
            continue
        shown.add(name)
        path = Path(job.tree["output"]) / name
        try:
            if path.stat().st_size > MAX_SAMPLE_BYTES:
                continue
            data = path.read_bytes()
        except OSError:
            continue
        pictures.append(SamplePicture(step=int(place[1]), index=int(place[2]), data=data))
    return pictures
