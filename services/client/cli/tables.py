"""Tables of the command: compact on a terminal, and a row a line where a program reads them.

Used by every command that lists something.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection

from rich import box
from rich.table import Table
from rich.text import Text

from services.client.cli.console import Console

_COLUMNS = "COLUMNS"
_UNBROKEN_WIDTH = 10_000


def new_table(*headings: str, whole: Collection[str] = (), caption: str | None = None) -> Table:
    """Return an empty table; where it is too wide, all columns but those in `whole` fold."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, caption=caption)
    for heading in headings:
        table.add_column(heading, no_wrap=heading in whole, overflow="fold")
    return table


def print_table(table: Table, *, empty: str) -> None:
    """Print a table, or `empty` where it has no rows.

    It is as wide as the terminal, or as COLUMNS says; elsewhere no line is broken.
    """
    fits = sys.stdout.isatty() or _COLUMNS in os.environ
    console = Console(width=None if fits else _UNBROKEN_WIDTH)
    console.print(table if table.row_count else Text(empty))
