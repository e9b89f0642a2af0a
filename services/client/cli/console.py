"""The terminal as the command writes to it: nothing that others wrote can steer it.

Names of files, answers of a server and words of a prompt may hold escape sequences and characters
that change the direction of writing. They are shown as Python writes them, like `\\x1b`.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich import console
from rich.segment import Segment


class Console(console.Console):
    """A console that shows what is not printable instead of sending it."""

    def render(
        self,
        renderable: console.RenderableType,
        options: console.ConsoleOptions | None = None,
    ) -> Iterable[Segment]:
        """Render as Rich does; its own control codes stay."""
        for segment in super().render(renderable, options):
            if segment.control or _is_harmless(segment.text):
                yield segment
            else:
                yield Segment(_shown(segment.text), segment.style)


def _is_harmless(text: str) -> bool:
    return text.isprintable() or text == "\n"


def _shown(text: str) -> str:
    return "".join(each if _is_harmless(each) else ascii(each)[1:-1] for each in text)
