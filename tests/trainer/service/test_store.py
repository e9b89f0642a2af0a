import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from services.storage.database import open_engine
from services.trainer.errors import JobNotFoundError
from services.trainer.job import TRANSITIONS, JobProgress, JobRequest, JobState
from services.trainer.store import JobStore, new_job_id
from services.trainer.tables import metadata

_REQUEST = JobRequest(
    base_model="tiny",
    dataset_id="d",
    instance_prompt="a sks dog",
    class_prompt="",
    token="sks",
    method="lora",
    configuration_yaml="",
)
_PATHS: dict[JobState, tuple[JobState, ...]] = {
    "queued": (),
    "running": ("running",),
    "succeeded": ("running", "succeeded"),
    "failed": ("running", "failed"),
    "cancelled": ("cancelled",),
}


async def test_only_legal_transitions_happen(database_url: str) -> None:
    engine = open_engine(database_url)
    store = JobStore(engine)
    await store.migrate()
    for state, path in _PATHS.items():
        for target in TRANSITIONS:
            key = f"{state} {target}"
            job = await store.create("alice", key, _REQUEST, {"output": "o"}, new_job_id())
            for step in path:
                assert await store.move(job.id, 1, step)
            moved = await store.move(job.id, 1, target)
            assert moved is (target in TRANSITIONS[state]), key
            assert (await store.get("alice", job.id)).state == (target if moved else state)
    await engine.dispose()


async def test_migrations_make_the_tables_that_the_code_knows(database_url: str) -> None:
    engine = open_engine(database_url)
    await JobStore(engine).migrate()

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


async def test_the_end_of_an_attempt_is_not_that_of_the_next(database_url: str) -> None:
    engine = open_engine(database_url)
    store = JobStore(engine)
    await store.migrate()
    job = await store.create("alice", "key", _REQUEST, {"output": "o"}, new_job_id())
    await store.cancel(job.id)
    assert await store.resume(job.id, job.attempt, "")
    assert not await store.resume(job.id, job.attempt, "")
    assert not await store.move(job.id, job.attempt, "cancelled")
    assert (await store.get("alice", job.id)).state == "queued"
    assert await store.claim(excluded=[job.id]) is None
    claimed = await store.claim()
    assert claimed is not None
    assert not await store.move(job.id, job.attempt, "failed")
    await store.progress(job.id, claimed.attempt, JobProgress(step=3))
    await store.progress(job.id, job.attempt, JobProgress(step=9))
    assert await store.move(job.id, claimed.attempt, "failed")
    await store.progress(job.id, claimed.attempt, JobProgress(step=9))
    assert (await store.get("alice", job.id)).progress.step == 3
    assert not await store.resume(job.id, job.attempt, "")
    assert not await store.remove(job.id, job.attempt)
    assert await store.remove(job.id, claimed.attempt)
    await engine.dispose()


async def test_ids_with_a_nul_belong_to_no_job(database_url: str) -> None:
    engine = open_engine(database_url)
    store = JobStore(engine)
    await store.migrate()
    assert await store.find_by_key("alice", "\0") is None
    with pytest.raises(JobNotFoundError):
        await store.get("alice", "\0")
    await engine.dispose()
