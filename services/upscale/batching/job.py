"""A picture in the batcher: what it asks for and how far it is.

Made by `upscaling`, owned by the batcher from `submit` on.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from services.runtime.fair_share import priority_weight
from services.upscale.batching.assembly import Assembly
from services.upscale.batching.events import EventSink, TilesProgressed
from services.upscale.batching.source import Source
from services.upscale.batching.tiling import TilePlan
from services.upscale.model import LoadedUpscaler

if TYPE_CHECKING:
    from services.upscale.batching.intake import Reservation

GroupKey: TypeAlias = tuple[str, float | None, tuple[int, int]]
"""Model, denoise strength and tile shape: tiles of one group can share a call."""
Rank: TypeAlias = tuple[int, float, int]


class JobState(Enum):
    """Where a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    GONE = "gone"


class Job:
    """One picture. Identity is equality."""

    def __init__(
        self,
        *,
        model: LoadedUpscaler,
        denoise_strength: float | None,
        source: Source,
        plan: TilePlan,
        sink: EventSink,
        reservation: Reservation,
        account: str = "",
        priority: int = 0,
        deadline: float | None = None,
        request_id: str = "",
    ) -> None:
        self.model = model
        self.denoise_strength = denoise_strength
        self.source = source
        self.plan = plan
        self.sink = sink
        self.reservation = reservation
        self.account = account
        self.priority = priority
        self.deadline = deadline
        """Seconds on the batcher's clock."""
        self.request_id = request_id
        self.assembly = Assembly(plan, scale=model.scale, channel_count=source.channel_count)
        self.state = JobState.WAITING
        self.withdrawn = False
        self.bands_under_way = 0
        """Bands that the encoder has not taken; kept by the intake."""
        self.queued_at = 0.0
        self.started_at = 0.0
        self.rank: Rank = (0, 0.0, 0)
        self.next_tile = 0
        """Index of the first tile that is not computed."""
        self.shown_position = -1

    @property
    def group(self) -> GroupKey:
        """With whose tiles its own can share a call."""
        return self.model.name, self.denoise_strength, self.plan.tile_shape

    @property
    def tile_pixel_count(self) -> int:
        """Source pixels that a tile costs, over its layers."""
        return self.plan.tile_pixel_count * self.source.layer_count

    @property
    def pixel_count(self) -> int:
        """Source pixels that all its tiles cost."""
        return self.tile_pixel_count * self.plan.tile_count

    @property
    def finished(self) -> bool:
        """Whether every tile is computed."""
        return self.next_tile == self.plan.tile_count

    @property
    def weight(self) -> float:
        """Share of its account's device time, by its priority."""
        return priority_weight(self.priority)

    def expired(self, now: float) -> bool:
        """Whether the client waits no longer."""
        return self.deadline is not None and now >= self.deadline

    def report_progress(self) -> None:
        """Tell how many tiles are done."""
        event = TilesProgressed(
            completed_tile_count=self.next_tile, total_tile_count=self.plan.tile_count
        )
        self.sink.put_latest("progress", event)
