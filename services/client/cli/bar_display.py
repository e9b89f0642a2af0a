"""A progress bar on the terminal for the length of a block; what the displays have in common."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import Progress


class BarDisplay:
    """Shows `bar` inside the block."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar

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
