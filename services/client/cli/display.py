"""A generation on the terminal: queue position, steps and remaining time, then the facts.

Used by `limner generate` and `limner demo`.
"""

from __future__ import annotations

from services.client import events
from services.client.cli.call_display import CallDisplay
from services.client.cli.console import Console


class GenerationDisplay(CallDisplay):
    """Shows the events of one generation as they come."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        super().__init__(console, verb="drawing", unit="steps", quiet=quiet)

    def show(self, event: events.Event) -> None:
        """Take the next event."""
        match event:
            case events.Accepted():
                self._accept(event.step_count * event.sample_count, event.notices)
            case events.Queued():
                self._queue(event)
            case events.Progress():
                self._advance("drawing", event.completed_step_count, event.total_step_count)
            case events.GeneratedImage():
                self._describe(f"picture {event.index + 1} is here")


def facts(accepted: events.Accepted) -> str:
    """Return the resolved values of a run as options: the same line draws the same picture."""
    values = (
        f"--model {accepted.model} --size {accepted.width}x{accepted.height} "
        f"--steps {accepted.step_count} --guidance {accepted.guidance_scale:g} "
        f"--sampler {accepted.sampler} --seed {accepted.seed}"
    )
    return values if accepted.sample_count == 1 else f"{values} --samples {accepted.sample_count}"
