"""Puts the results of several rounds together.

Called by `__main__`. The systems take turns, so that other work on the machine hits all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any


def middle(results: Sequence[Any]) -> Any:
    """The median of every number, inside dictionaries of the same keys; lists are joined."""
    first = results[0]
    if isinstance(first, dict):
        return {key: middle([result[key] for result in results]) for key in first}
    if isinstance(first, list):
        return [value for result in results for value in result]
    return median(results)
