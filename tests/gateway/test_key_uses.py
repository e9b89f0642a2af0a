import asyncio
from datetime import UTC, datetime, timedelta

from services.gateway.key_uses import KeyUses
from tests.gateway.waiting import until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)


class Store:
    """Remembers what was written, and fails while it is away."""

    def __init__(self):
        self.written = []
        self.is_away = False

    async def note_uses(self, uses):
        if self.is_away:
            raise OSError
        self.written.append(dict(uses))


async def test_uses_are_written_together_and_once():
    store = Store()
    uses = KeyUses(store)
    for at in (NOW, LATER):
        uses.note("k1", at)
    uses.note("k2", NOW)
    for _ in range(2):
        await uses.flush()
    assert store.written == [{"k1": LATER, "k2": NOW}]


async def test_what_cannot_be_written_is_kept_and_a_later_use_wins():
    store = Store()
    uses = KeyUses(store)
    uses.note("k1", NOW)
    uses.note("k2", NOW)
    store.is_away = True
    await uses.flush()
    uses.note("k1", LATER)
    store.is_away = False
    await uses.flush()
    assert store.written == [{"k1": LATER, "k2": NOW}]


async def test_uses_are_written_by_and_by():
    store = Store()
    uses = KeyUses(store, interval_s=0.01)
    running = asyncio.create_task(uses.run())
    for number in range(2):
        uses.note(f"k{number}", NOW)
        await until(lambda number=number: len(store.written) == number + 1)
    running.cancel()
