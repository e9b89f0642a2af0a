"""Jobs in a SQL database; every change of state is one statement that checks where it starts.

Called by `trainings` for accounts and by `supervisor` for runs. It knows no run and no protobuf.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Row, delete, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncEngine

from services.storage.database import begin_write, insert_into
from services.storage.migration import upgrade_schema
from services.trainer.errors import IdempotencyKeyUsedError, JobNotFoundError
from services.trainer.job import (
    FINAL_STATES,
    JobFailure,
    JobProgress,
    JobRequest,
    JobState,
    TrainingJob,
    sources_of,
)
from services.trainer.tables import jobs

_SCRIPTS = Path(__file__).parent / "migrations"


class JobStore:
    """Reads and writes jobs; raises SQLAlchemyError where the database is away."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def migrate(self) -> None:
        """Bring the schema up to date."""
        await upgrade_schema(self._engine, _SCRIPTS, unversioned="0001", table="training_jobs")

    async def create(
        self, account: str, key: str, request: JobRequest, tree: Mapping[str, Any], job_id: str
    ) -> TrainingJob:
        """Add a queued job, or return the one under this key.

        Raises `IdempotencyKeyUsedError` where that one was asked for differently.
        """
        now = datetime.now(UTC)
        values = {
            "id": job_id,
            "account": account,
            "idempotency_key": key,
            "state": "queued",
            "request": asdict(request),
            "tree": dict(tree),
            "progress": asdict(JobProgress()),
            "cancel_requested": False,
            "created": now,
            "updated": now,
        }
        async with begin_write(self._engine) as connection:
            adding = insert_into(connection, jobs).values(values).on_conflict_do_nothing()
            await connection.execute(adding)
        job = await self.find_by_key(account, key)
        assert job is not None, "it was added, or was there"
        if job.request != request:
            raise IdempotencyKeyUsedError(job.id)
        return job

    async def find_by_key(self, account: str, key: str) -> TrainingJob | None:
        """The job under an idempotency key."""
        named = (jobs.c.account == account) & (jobs.c.idempotency_key == key)
        async with self._engine.connect() as connection:
            row = (await connection.execute(select(jobs).where(named))).one_or_none()
        return None if row is None else _job(row)

    async def get(self, account: str, job_id: str) -> TrainingJob:
        """A job of the account. Raises `JobNotFoundError`."""
        named = (jobs.c.account == account) & (jobs.c.id == job_id)
        async with self._engine.connect() as connection:
            row = (await connection.execute(select(jobs).where(named))).one_or_none()
        if row is None:
            raise JobNotFoundError(job_id)
        return _job(row)

    async def list_jobs(
        self, account: str, count: int, before: tuple[datetime, str] | None
    ) -> list[TrainingJob]:
        """Up to `count` jobs, the newest first, older than the one created at `before`."""
        chosen = select(jobs).where(jobs.c.account == account)
        if before is not None:
            chosen = chosen.where(tuple_(jobs.c.created, jobs.c.id) < before)
        chosen = chosen.order_by(jobs.c.created.desc(), jobs.c.id.desc()).limit(count)
        async with self._engine.connect() as connection:
            return [_job(row) for row in await connection.execute(chosen)]

    async def queued_count(self) -> int:
        """Jobs that wait."""
        counting = select(func.count()).select_from(jobs).where(jobs.c.state == "queued")
        async with self._engine.connect() as connection:
            return int((await connection.execute(counting)).scalar_one())

    async def claim(self) -> TrainingJob | None:
        """Make the oldest queued job a running one and return it."""
        async with begin_write(self._engine) as connection:
            oldest = (
                select(jobs)
                .where(jobs.c.state == "queued")
                .order_by(jobs.c.created, jobs.c.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            row = (await connection.execute(oldest)).one_or_none()
            if row is None:
                return None
            changes = {"state": "running", "updated": datetime.now(UTC)}
            await connection.execute(update(jobs).where(jobs.c.id == row.id).values(changes))
        return _job(row, state="running")

    async def move(
        self, job_id: str, state: JobState, *, failure: JobFailure | None = None
    ) -> bool:
        """Change the state if that is legal now; whether it was."""
        changes = {
            "state": state,
            "failure_reason": None if failure is None else failure.reason,
            "failure_message": None if failure is None else failure.message,
            "cancel_requested": False,
            "updated": datetime.now(UTC),
        }
        legal = (jobs.c.id == job_id) & jobs.c.state.in_(sources_of(state))
        async with begin_write(self._engine) as connection:
            return (
                await connection.execute(update(jobs).where(legal).values(changes))
            ).rowcount > 0

    async def cancel(self, job_id: str) -> None:
        """Cancel a queued job; ask a running one to stop; leave an ended one as it is."""
        if await self._move_queued_to_cancelled(job_id):
            return
        asked = {"cancel_requested": True, "updated": datetime.now(UTC)}
        running = (jobs.c.id == job_id) & (jobs.c.state == "running")
        async with begin_write(self._engine) as connection:
            await connection.execute(update(jobs).where(running).values(asked))

    async def cancel_requested(self, job_id: str) -> bool:
        """Whether its owner wants a job to stop."""
        async with self._engine.connect() as connection:
            chosen = select(jobs.c.cancel_requested).where(jobs.c.id == job_id)
            return bool((await connection.execute(chosen)).scalar_one())

    async def progress(self, job_id: str, progress: JobProgress) -> None:
        """Note what the run says."""
        changes = {"progress": asdict(progress), "updated": datetime.now(UTC)}
        async with begin_write(self._engine) as connection:
            await connection.execute(update(jobs).where(jobs.c.id == job_id).values(changes))

    async def recover(self) -> list[str]:
        """Queue the jobs whose service died under them; those that were to stop are cancelled."""
        changed: list[str] = []
        async with self._engine.connect() as connection:
            chosen = select(jobs.c.id, jobs.c.cancel_requested).where(jobs.c.state == "running")
            running = (await connection.execute(chosen)).all()
        for job_id, cancel_requested in running:
            if await self.move(job_id, "cancelled" if cancel_requested else "queued"):
                changed.append(job_id)
        return changed

    async def remove(self, job_id: str) -> bool:
        """Forget a job that has ended; whether it was there and had."""
        ended = (jobs.c.id == job_id) & jobs.c.state.in_(FINAL_STATES)
        async with begin_write(self._engine) as connection:
            return (await connection.execute(delete(jobs).where(ended))).rowcount > 0

    async def _move_queued_to_cancelled(self, job_id: str) -> bool:
        queued = (jobs.c.id == job_id) & (jobs.c.state == "queued")
        changes = {"state": "cancelled", "updated": datetime.now(UTC)}
        async with begin_write(self._engine) as connection:
            return (
                await connection.execute(update(jobs).where(queued).values(changes))
            ).rowcount > 0


def new_job_id() -> str:
    """An id that nobody can guess."""
    return f"job_{secrets.token_hex(10)}"


def _job(row: Row[Any], state: JobState | None = None) -> TrainingJob:
    failure = None
    if row.failure_reason is not None:
        failure = JobFailure(reason=row.failure_reason, message=row.failure_message or "")
    return TrainingJob(
        id=row.id,
        account=row.account,
        state=state or row.state,
        request=JobRequest(**row.request),
        tree=row.tree,
        progress=JobProgress(**row.progress),
        failure=failure,
        cancel_requested=row.cancel_requested,
        create_time=row.created,
        update_time=row.updated,
    )
