"""One call on the terminal: what it is doing, how far it is, how long it will take.

What `limner generate` and `limner upscale` show on standard error have in common. Where that is no
terminal, a line at each quarter of the way takes the place of the bar.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from services.client.cli.bar_display import BarDisplay
from services.client.cli.console import Console
from services.client.events import Notice, Queued


class CallDisplay(BarDisplay):
    """A bar that counts in `unit`; `verb` is what the lines say that take its place."""

    def __init__(self, console: Console, *, verb: str, unit: str, quiet: bool) -> None:
        super().__init__(
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeRemainingColumn(),
                console=console,
                disable=quiet or not console.is_terminal,
                transient=True,
            )
        )
        self._console = console
        self._verb = verb
        self._unit = unit
        self._quiet = quiet
        self._quarters_printed = 0
        self._task = self._bar.add_task("connecting", total=None)

    def _accept(self, total: int, notices: Sequence[Notice]) -> None:
        """Take the length of the way and what the server has to say."""
        self._bar.update(self._task, description="accepted", total=total)
        if not self._quiet:
            for notice in notices:
                note = Text(f"note: {notice.message}", style="yellow")
                self._console.print(note, soft_wrap=True)

    def _queue(self, queued: Queued) -> None:
        ahead = queued.position
        self._describe(f"{ahead} ahead" if ahead else "next in line")

    def _describe(self, doing: str) -> None:
        self._bar.update(self._task, description=doing)

    def _advance(self, doing: str, done: int, total: int) -> None:
        """Show that `done` of `total` is done."""
        self._bar.update(self._task, description=doing, completed=done, total=total)
        if self._quiet or self._console.is_terminal or not total:
            return
        quarters = 4 * done // total
        if quarters > self._quarters_printed:
            self._quarters_printed = quarters
            self._console.print(f"{self._verb}: {done} of {total} {self._unit}", highlight=False)
