"""A generation on the terminal: queue position, steps and remaining time, then the facts.

Used by `limner generate` and `limner demo`, on standard error. Where that is no terminal, a line at
each quarter of the way takes the place of the bar.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from services.client import events


class GenerationDisplay:
    """Shows the events of one generation as they come."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
        )
        self._quarters_printed = 0
        self._task = self._bar.add_task("connecting", total=None)

    def show(self, event: events.Event) -> None:
        """Take the next event."""
        match event:
            case events.Accepted():
                total = event.step_count * event.sample_count
                self._bar.update(self._task, description="accepted", total=total)
                self._print_notices(event)
            case events.Queued(position=0):
                self._bar.update(self._task, description="next in line")
            case events.Queued():
                self._bar.update(self._task, description=f"{event.position} ahead")
            case events.Progress():
                self._bar.update(
                    self._task,
                    description="drawing",
                    completed=event.completed_step_count,
                    total=event.total_step_count,
                )
                self._print_quarter(event)
            case events.GeneratedImage():
                self._bar.update(self._task, description=f"picture {event.index + 1} is here")

    def _print_notices(self, accepted: events.Accepted) -> None:
        if not self._quiet:
            for notice in accepted.notices:
                note = Text(f"note: {notice.message}", style="yellow")
                self._console.print(note, soft_wrap=True)

    def _print_quarter(self, progress: events.Progress) -> None:
        if self._quiet or self._console.is_terminal or not progress.total_step_count:
            return
        quarters = 4 * progress.completed_step_count // progress.total_step_count
        if quarters > self._quarters_printed:
            self._quarters_printed = quarters
            done = f"{progress.completed_step_count} of {progress.total_step_count} steps"
            self._console.print(f"drawing: {done}", highlight=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()


def facts(accepted: events.Accepted) -> str:
    """Return the resolved values of a run as options: the same line draws the same picture."""
    values = (
        f"--model {accepted.model} --size {accepted.width}x{accepted.height} "
        f"--steps {accepted.step_count} --guidance {accepted.guidance_scale:g} "
        f"--sampler {accepted.sampler} --seed {accepted.seed}"
    )
    return values if accepted.sample_count == 1 else f"{values} --samples {accepted.sample_count}"
