import asyncio
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, StatementError

from services.storage.database import (
    UtcDateTime,
    begin_write,
    close_engine,
    is_outage,
    open_engine,
    sqlite_path,
    write_at_once,
)

metadata = MetaData()
parents = Table(
    "parents", metadata, Column("id", Integer, primary_key=True), Column("at", UtcDateTime)
)
children = Table("children", metadata, Column("parent", ForeignKey("parents.id")))


@pytest.fixture
async def engine(tmp_path):
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/new/folder/test.db")
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield engine
    await engine.dispose()


async def test_the_folder_of_a_sqlite_file_is_made(engine, tmp_path):
    assert (tmp_path / "new" / "folder" / "test.db").exists()


@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 5000)]
)
async def test_sqlite_connections_are_configured(engine, pragma, value):
    async with engine.connect() as one, engine.connect() as other:
        for connection in (one, other):
            assert await connection.scalar(text(f"PRAGMA {pragma}")) == value


async def test_foreign_keys_are_enforced(engine):
    with pytest.raises(IntegrityError):
        async with engine.begin() as connection:
            await connection.execute(insert(children).values(parent=1))


async def test_writers_that_read_first_take_turns(engine):
    async def count_up():
        async with begin_write(engine) as connection:
            count = await connection.scalar(select(func.max(parents.c.id))) or 0
            await asyncio.sleep(0)
            await connection.execute(insert(parents).values(id=count + 1))

    await asyncio.gather(*(count_up() for _ in range(50)))
    async with engine.connect() as connection:
        assert await connection.scalar(select(func.max(parents.c.id))) == 50


async def test_a_transaction_that_fails_leaves_nothing_and_blocks_nobody(engine):
    async def fail():
        async with begin_write(engine) as connection:
            await connection.execute(insert(parents).values(id=1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    async with begin_write(engine) as connection:
        assert await connection.scalar(select(func.count()).select_from(parents)) == 0


async def test_points_in_time_come_back_in_utc(engine):
    moment = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    async with engine.begin() as connection:
        await connection.execute(insert(parents).values(id=1, at=moment))
        stored = await connection.scalar(select(parents.c.at))
    assert stored == moment
    assert stored.tzinfo is UTC


async def test_a_time_without_a_zone_is_refused(engine):
    with pytest.raises(StatementError, match="without a time zone"):
        async with engine.begin() as connection:
            await connection.execute(insert(parents).values(id=1, at=datetime(2026, 3, 1)))


async def test_writes_at_once_take_turns_with_those_in_steps(engine):
    async with engine.begin() as connection:
        await connection.execute(insert(parents).values(id=0))

    def count_up(connection):
        count = connection.scalar(select(parents.c.id))
        connection.execute(update(parents).values(id=count + 1))
        return count

    async def count_up_in_steps():
        async with begin_write(engine) as connection:
            return await connection.run_sync(count_up)

    steps = [count_up_in_steps() for _ in range(10)]
    counted = await asyncio.gather(*steps, *(write_at_once(engine, count_up) for _ in range(10)))
    assert sorted(counted) == list(range(20))


async def test_a_write_at_once_that_fails_changes_nothing_and_closing_ends_its_thread(engine):
    def fail(connection):
        connection.execute(insert(parents).values(id=7))
        connection.execute(insert(children).values(parent=8))

    threads = set(threading.enumerate())
    with pytest.raises(IntegrityError):
        await write_at_once(engine, fail)
    [writer] = [
        each
        for each in set(threading.enumerate()) - threads
        if each.name.startswith("sqlite-writer")
    ]
    async with engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(parents)) == 0
    await close_engine(engine)
    await asyncio.to_thread(writer.join, 10)
    assert not writer.is_alive()


async def test_writers_of_two_engines_wait_for_each_other(engine):
    other = open_engine(engine.url.render_as_string(hide_password=False))
    async with engine.begin() as connection:
        await connection.execute(insert(parents).values(id=0))

    async def count_up(mine):
        async with mine.begin() as connection:
            await connection.execute(update(parents).values(id=parents.c.id + 1))

    await asyncio.gather(*(count_up(mine) for _ in range(25) for mine in (engine, other)))
    async with engine.connect() as connection:
        assert await connection.scalar(select(parents.c.id)) == 50
    await other.dispose()


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_no_other_file_is_taken_for_one_that_is_gone(engine, tmp_path, is_replaced):
    def add(connection):
        connection.execute(insert(parents))

    async def count():
        async with engine.connect() as connection:
            return await connection.scalar(select(func.count()).select_from(parents))

    await write_at_once(engine, add)
    path, kept = tmp_path / "new/folder/test.db", tmp_path / "new/folder/kept.db"
    path.rename(kept)
    if is_replaced:
        path.touch()
    for _ in range(2):
        for use in (count, lambda: write_at_once(engine, add)):
            with pytest.raises(OSError, match="was removed or replaced while it was") as raised:
                await use()
            assert is_outage(raised.value)
    assert path.exists() == is_replaced
    kept.replace(path)
    await write_at_once(engine, add)
    assert await count() == 2


@pytest.mark.parametrize("url", ["", "nonsense", "foo+bar://host/db", "sqlite:///file.db"])
def test_a_bad_url_is_a_value_error(url):
    with pytest.raises(ValueError, match=r"database URL|asynchronous"):
        open_engine(url)


def test_an_error_never_quotes_a_password():
    with pytest.raises(ValueError, match="postgresql") as raised:
        open_engine("postgresql+psycopg2://user:hunter2@host/db")
    assert "hunter2" not in str(raised.value)


def test_only_sqlite_files_have_a_path(tmp_path):
    assert sqlite_path(f"sqlite+aiosqlite:///{tmp_path}/a.db") == tmp_path / "a.db"
    assert sqlite_path("sqlite+aiosqlite://") is None
    assert sqlite_path("sqlite+aiosqlite:///:memory:") is None
    assert sqlite_path("postgresql+asyncpg://user@host/db") is None
