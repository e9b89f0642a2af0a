"""Jobs in a SQL database; every change of state is one statement that checks where it starts.

Called by `trainings` for accounts and by `supervisor` for runs. Whoever is to be told of a change
gets a row in the outbox in the same transaction. It knows no run and no protobuf.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, func, select, tuple_, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.storage.database import begin_write, explain, insert_into, is_outage
from services.storage.migration import upgrade_schema
from services.trainer.errors import (
    IdempotencyKeyUsedError,
    JobExistsError,
    JobNotFoundError,
    StoreDownError,
)
from services.trainer.job import (
    FINAL_STATES,
    JobFailure,
    JobProgress,
    JobRequest,
    JobState,
    JobWarning,
    TrainingJob,
    sources_of,
)
from services.trainer.tables import jobs
from services.trainer.webhook_outbox import announce

_SCRIPTS = Path(__file__).parent / "migrations"
_NUL = "\0"
"""In no text that PostgreSQL holds."""


class JobStore:
    """Reads and writes jobs; raises `StoreDownError` where the database does not."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def migrate(self) -> None:
        """Bring the schema up to date."""
        await upgrade_schema(self._engine, _SCRIPTS, unversioned="0001", table="training_jobs")

    async def create(
        self,
        account: str,
        key: str,
        request: JobRequest,
        tree: Mapping[str, Any],
        job_id: str,
        *,
        step_count: int = 0,
        reservation: str = "",
        warnings: tuple[JobWarning, ...] = (),
    ) -> TrainingJob:
        """Add a queued job, or return the one under this key.

        Raises `IdempotencyKeyUsedError` where that one was asked for differently, `JobExistsError`
        where another job has its id or the name of its model.
        """
        now = datetime.now(UTC)
        values = {
            "id": job_id,
            "account": account,
            "idempotency_key": key,
            "state": "queued",
            "request": asdict(request),
            "tree": dict(tree),
            "progress": asdict(JobProgress(step_count=step_count)),
            "cancel_requested": False,
            "created": now,
            "updated": now,
            "attempt": 1,
            "reservation": reservation,
            "warnings": [asdict(warning) for warning in warnings],
            "model": request.model(job_id),
        }
        async with self._writing() as connection:
            adding = insert_into(connection, jobs).values(values).on_conflict_do_nothing()
            await connection.execute(adding)
        job = await self.find_by_key(account, key)
        if job is None:
            raise JobExistsError(job_id)
        if job.request != request:
            raise IdempotencyKeyUsedError(job.id)
        return job

    async def has_model(self, account: str, model: str) -> bool:
        """Whether a job of the account makes a model of this name."""
        return await self._find(jobs.c.account == account, jobs.c.model == model) is not None

    async def find_by_key(self, account: str, key: str) -> TrainingJob | None:
        """The job under an idempotency key."""
        if _NUL in key:
            return None
        return await self._find(jobs.c.account == account, jobs.c.idempotency_key == key)

    async def get(self, account: str, job_id: str) -> TrainingJob:
        """A job of the account. Raises `JobNotFoundError`."""
        if _NUL in job_id:
            raise JobNotFoundError(job_id)
        job = await self._find(jobs.c.account == account, jobs.c.id == job_id)
        if job is None:
            raise JobNotFoundError(job_id)
        return job

    async def list_jobs(
        self, account: str, count: int, before: tuple[datetime, str] | None
    ) -> list[TrainingJob]:
        """Up to `count` jobs, the newest first, older than the one created at `before`."""
        chosen = select(jobs).where(jobs.c.account == account)
        if before is not None:
            chosen = chosen.where(tuple_(jobs.c.created, jobs.c.id) < before)
        chosen = chosen.order_by(jobs.c.created.desc(), jobs.c.id.desc()).limit(count)
        async with self._reading() as connection:
            return [_job(row) for row in await connection.execute(chosen)]

    async def queued_count(self) -> int:
        """Jobs that wait."""
        counting = select(func.count()).select_from(jobs).where(jobs.c.state == "queued")
        async with self._reading() as connection:
            return int((await connection.execute(counting)).scalar_one())

    async def claim(self, *, excluded: Sequence[str] = ()) -> TrainingJob | None:
        """Make the oldest queued job that is not `excluded` a running one and return it."""
        oldest = (
            select(jobs.c.id)
            .where(jobs.c.state == "queued", jobs.c.id.not_in(excluded))
            .order_by(jobs.c.created, jobs.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        async with self._writing() as connection:
            job_id = (await connection.execute(oldest)).scalar_one_or_none()
            if job_id is None:
                return None
            return await _change(connection, jobs.c.id == job_id, {"state": "running"})

    async def move(
        self, job_id: str, attempt: int, state: JobState, *, failure: JobFailure | None = None
    ) -> bool:
        """Change the state if the job is at this attempt and that is legal now; whether it was."""
        changes = {
            "state": state,
            "failure_reason": None if failure is None else failure.reason,
            "failure_message": None if failure is None else failure.message,
            "cancel_requested": False,
        }
        legal = _at(job_id, attempt) & jobs.c.state.in_(sources_of(state))
        async with self._writing() as connection:
            return await _change(connection, legal, changes) is not None

    async def resume(self, job_id: str, attempt: int, reservation: str) -> bool:
        """Queue a job of which this attempt failed or was cancelled, as a new one; whether it was
        so."""
        changes = {
            "state": "queued",
            "failure_reason": None,
            "failure_message": None,
            "cancel_requested": False,
            "attempt": attempt + 1,
            "reservation": reservation,
        }
        ended = _at(job_id, attempt) & jobs.c.state.in_(("failed", "cancelled"))
        async with self._writing() as connection:
            return await _change(connection, ended, changes) is not None

    async def cancel(self, job_id: str) -> None:
        """Cancel a queued job; ask a running one to stop; leave an ended one as it is."""
        queued = (jobs.c.id == job_id) & (jobs.c.state == "queued")
        running = (jobs.c.id == job_id) & (jobs.c.state == "running")
        asked = {"cancel_requested": True, "updated": datetime.now(UTC)}
        async with self._writing() as connection:
            if await _change(connection, queued, {"state": "cancelled"}) is None:
                await connection.execute(update(jobs).where(running).values(asked))

    async def cancel_requested(self, job_id: str) -> bool:
        """Whether its owner wants a job to stop."""
        async with self._reading() as connection:
            chosen = select(jobs.c.cancel_requested).where(jobs.c.id == job_id)
            return bool((await connection.execute(chosen)).scalar_one())

    async def progress(self, job_id: str, attempt: int, progress: JobProgress) -> None:
        """Note what the run of an attempt says; nothing once the attempt has ended, for its steps
        are paid by then."""
        changes = {"progress": asdict(progress), "updated": datetime.now(UTC)}
        running = _at(job_id, attempt) & (jobs.c.state == "running")
        async with self._writing() as connection:
            await connection.execute(update(jobs).where(running).values(changes))

    async def running_jobs(self) -> list[TrainingJob]:
        """All that have a run, the oldest first."""
        chosen = select(jobs).where(jobs.c.state == "running").order_by(jobs.c.created, jobs.c.id)
        async with self._reading() as connection:
            return [_job(row) for row in await connection.execute(chosen)]

    async def remove(self, job_id: str, attempt: int) -> bool:
        """Forget a job of which this attempt has ended; whether it was there and had."""
        ended = _at(job_id, attempt) & jobs.c.state.in_(FINAL_STATES)
        async with self._writing() as connection:
            return (await connection.execute(delete(jobs).where(ended))).rowcount > 0

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        with _outages_told():
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        with _outages_told():
            async with begin_write(self._engine) as connection:
                yield connection

    async def _find(self, *conditions: ColumnElement[bool]) -> TrainingJob | None:
        async with self._reading() as connection:
            row = (await connection.execute(select(jobs).where(*conditions))).one_or_none()
        return None if row is None else _job(row)


@contextmanager
def _outages_told() -> Iterator[None]:
    """Errors that are no outage, defects of ours, pass."""
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        if not is_outage(error):
            raise
        raise StoreDownError(explain(error)) from error


def new_job_id() -> str:
    """An id that nobody can guess."""
    return job_id_of(secrets.token_hex(10))


def job_id_of(reservation: str) -> str:
    """The id of the job that is created under a reservation."""
    return f"job_{reservation}"


def _at(job_id: str, attempt: int) -> ColumnElement[bool]:
    return (jobs.c.id == job_id) & (jobs.c.attempt == attempt)


async def _change(
    connection: AsyncConnection, condition: ColumnElement[bool], changes: Mapping[str, Any]
) -> TrainingJob | None:
    """Change the state of the job that meets a condition, and let it be announced."""
    values = {**changes, "updated": datetime.now(UTC)}
    changing = update(jobs).where(condition).values(values).returning(jobs)
    row = (await connection.execute(changing)).one_or_none()
    if row is None:
        return None
    job = _job(row)
    await announce(connection, job)
    return job


def _job(row: Row[Any], state: JobState | None = None) -> TrainingJob:
    failure = None
    if row.failure_reason is not None:
        failure = JobFailure(reason=row.failure_reason, message=row.failure_message or "")
    progress = {**row.progress, "samples": tuple(row.progress.get("samples", ()))}
    return TrainingJob(
        id=row.id,
        account=row.account,
        state=state or row.state,
        request=JobRequest(**row.request),
        tree=row.tree,
        progress=JobProgress(**progress),
        failure=failure,
        cancel_requested=row.cancel_requested,
        create_time=row.created,
        update_time=row.updated,
        attempt=row.attempt,
        reservation=row.reservation,
        warnings=tuple(JobWarning(**warning) for warning in row.warnings),
    )
