"""The start of a suite on the terminal: how far each service is.

Used by `up` and `demo`. On a terminal it is one line that changes, elsewhere a line a change.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from services.client.cli.console import Console
from services.local.readiness import State

_WORDS = {
    ("diffusion", State.WARMING): "loading the model (a first start exports it, about a minute)",
    ("upscale", State.WARMING): "loading the upscalers (a first start exports them)",
    ("gateway", State.WARMING): "waiting for a model",
}


class StartDisplay:
    """Shows the state of each service until all are ready."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._states: dict[str, str] = {}
        self._start = time.monotonic()
        self._spinner = Spinner("dots")
        self._live = Live(self, console=console, transient=True, refresh_per_second=8)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def show(self, name: str, state: State) -> None:
        """Take the new state of a service."""
        self._states[name] = _WORDS.get((name, state), state.value)
        if not self._console.is_terminal:
            self._console.print(f"{name}: {self._states[name]}", highlight=False)

    def __rich__(self) -> Spinner:
        states = "  ".join(f"{name}: {words}" for name, words in self._states.items())
        self._spinner.update(text=Text(f"{states}  {self.elapsed_s:.0f} s", overflow="ellipsis"))
        return self._spinner

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()


def print_death(console: Console, message: str, log_tail: str = "") -> None:
    """Print which service ended and the end of its log."""
    console.print(Text(f"limner: {message}", style="red"), soft_wrap=True)
    if log_tail:
        tail = "\n".join(f"  {line}" for line in log_tail.splitlines())
        console.print(Text(tail, style="dim"), soft_wrap=True)
