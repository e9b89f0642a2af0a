"""A job (one request) and its rows (one for each picture): what the batcher schedules.

Made by `services.diffusion.generation` for each request, driven by the batcher. A job knows its
size exactly, the number of model calls, which is what the scheduler lives on. A row is its place
on its trajectory and its noise stream; its tensors live in a `RowPool`.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import TypeAlias

from services.diffusion.batching.events import EventSink, JobProgressed
from services.diffusion.model import LoadedModel
from services.diffusion.noise import NoiseStream, sample_seed
from services.diffusion.samplers import Trajectory, plan
from services.runtime.fair_share import priority_weight

GroupKey: TypeAlias = tuple[str, tuple[int, int, int]]
"""Model name and latent shape (C, h, w): what rows must share to be in one model call."""

_PROGRESS_INTERVAL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSpec:
    """A request with every value settled and valid for its model."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    step_count: int
    guidance_scale: float
    seed: int
    sampler: str
    sample_count: int
    preview_interval: int
    """Steps between previews of a sample; 0 for none."""

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance changes anything, so that a row needs two slots."""
        return self.guidance_scale > 1.0


class JobState(enum.Enum):
    """Where a job is; it only moves forward."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    GONE = enum.auto()


class Job:
    """One request on its way through the batcher.

    Raises ValueError when the spec does not fit the model's samplers. `deadline` is in seconds on
    the batcher's clock.
    """

    __slots__ = (
        "account",
        "completed_step_count",
        "deadline",
        "group",
        "model",
        "priority",
        "queue_share",
        "queued_at",
        "rank",
        "reported_at",
        "reported_step_count",
        "request_id",
        "rows",
        "shown_position",
        "sink",
        "slot_count",
        "spec",
        "started_at",
        "state",
        "total_step_count",
        "trajectory",
        "unfinished_count",
        "weight",
        "withdrawn",
    )

    def __init__(
        self,
        *,
        model: LoadedModel,
        spec: ImageSpec,
        sink: EventSink,
        account: str = "",
        priority: int = 0,
        queue_share: float = 1.0,
        deadline: float | None = None,
        request_id: str = "",
    ) -> None:
        self.model = model
        self.spec = spec
        self.sink = sink
        self.account = account
        self.priority = priority
        self.weight = priority_weight(priority)
        self.queue_share = queue_share
        """How full the queue may be for this job to wait in it."""
        self.deadline = deadline
        self.request_id = request_id
        self.trajectory: Trajectory = plan(spec.sampler, model.schedule, spec.step_count)
        self.group: GroupKey = (model.name, model.latent_shape(spec.width, spec.height))
        self.slot_count = 2 if spec.guided else 1
        """Slots that each row takes in a model call."""
        self.total_step_count = self.trajectory.step_count * spec.sample_count
        self.state = JobState.WAITING
        self.withdrawn = False
        """Set from any thread by `Batcher.withdraw`, read at every tick."""
        self.rank: Rank = (0, 0.0, 0)
        """Order within the account; settled by the scheduler on arrival."""
        self.queued_at = 0.0
        self.started_at = 0.0
        self.shown_position = -1
        self.rows: list[Row] = []
        self.unfinished_count = spec.sample_count
        self.completed_step_count = 0
        self.reported_step_count = 0
        self.reported_at = -math.inf

    @property
    def work(self) -> int:
        """Slots times calls that the whole job takes."""
        return self.slot_count * self.trajectory.call_count * self.spec.sample_count

    def make_rows(self) -> list[Row]:
        """Create the rows, at the start of their trajectories."""
        self.rows = [Row(self, index) for index in range(self.spec.sample_count)]
        return self.rows

    def expired(self, now: float) -> bool:
        """Whether the client's deadline has passed."""
        return self.deadline is not None and self.deadline <= now

    def end(self) -> None:
        """Let go of the rows; no tensor and no generator outlives a job."""
        self.state = JobState.GONE
        self.rows = []

    def report_progress(self, now: float) -> None:
        """Tell how many steps are done over all samples, if that has changed.

        The first and the last step are told at once, the others not more often than a progress
        bar can show: on a CPU every event takes time from the cores that compute.
        """
        if self.completed_step_count == self.reported_step_count:
            return
        is_last = self.completed_step_count == self.total_step_count
        if not is_last and now - self.reported_at < _PROGRESS_INTERVAL_S:
            return
        self.reported_step_count = self.completed_step_count
        self.reported_at = now
        event = JobProgressed(
            completed_step_count=self.completed_step_count, total_step_count=self.total_step_count
        )
        self.sink.put_latest("progress", event)


Rank: TypeAlias = tuple[int, float, int]
"""Priority negated, virtual deadline in ticks, order of arrival: smaller goes first."""


class Row:
    """One picture in the making."""

    __slots__ = ("call", "index", "job", "noise", "place", "scheduled", "seed", "slot_count")

    def __init__(self, job: Job, index: int) -> None:
        self.job = job
        self.index = index
        self.slot_count = job.slot_count
        """Slots that the row takes in a model call."""
        self.seed = sample_seed(job.spec.seed, index)
        self.noise = NoiseStream(self.seed, job.group[1])
        self.call = 0
        """The next model call on the trajectory."""
        self.place = -1
        """Index in its `RowPool`, which keeps it up to date; −1 outside of one."""
        self.scheduled = False
        """Whether it competes for slots; the scheduler keeps it up to date."""

    @property
    def finished(self) -> bool:
        """Whether the trajectory is at its end."""
        return self.call == self.job.trajectory.call_count

    @property
    def completed_step_count(self) -> int:
        """User-visible steps that are behind the row."""
        steps = self.job.trajectory.step_of_call
        return int(steps[-1]) if self.finished else int(steps[self.call]) - 1
