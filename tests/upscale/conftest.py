from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.upscale.weights.library import Entry, find_entries

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "models" / "upscalers"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture(scope="session")
def entries() -> dict[str, Entry]:
    """The upscalers of the catalogue."""
    return find_entries([SHIPPED])
