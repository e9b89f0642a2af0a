"""What an account can do with datasets and training jobs; knows no protobuf.

Files and checks are dealt with on threads; the event loop never waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from services.runtime.errors import (
    FieldViolation,
    InvalidRequestError,
    QueueFullError,
    UnavailableError,
)
from services.storage.catalog import Catalog
from services.storage.disk import is_disk_full
from services.trainer.changes import JobChanges
from services.trainer.datasets import MAX_DATASET_BYTES, DatasetStore, Piece
from services.trainer.errors import IdempotencyKeyUsedError, JobStateError, StorageFullError
from services.trainer.job import FINAL_STATES, JobProgress, JobRequest, TrainingJob
from services.trainer.metrics import TrainerMetrics
from services.trainer.request_checks import CheckedRequest, check_request
from services.trainer.sample_pictures import SamplePicture, new_samples
from services.trainer.store import JobStore, job_id_of, new_job_id
from services.trainer.supervisor import Supervisor
from services.trainer.webhook_client import WebhookClient

_LOGGER = logging.getLogger(__name__)

_PAGE_SIZE = 20
_MAX_PAGE_SIZE = 100
_QUEUE_RETRY_S = 60.0


class Trainings:
    """The operations of the service."""

    def __init__(
        self,
        *,
        store: JobStore,
        datasets: DatasetStore,
        supervisor: Supervisor,
        changes: JobChanges,
        metrics: TrainerMetrics,
        draining: asyncio.Event,
        bases: Mapping[str, Path],
        folder: Path,
        class_image_cache: Path,
        max_queued: int,
        catalog: Catalog,
        webhooks: WebhookClient,
        allow_unserved: bool,
    ) -> None:
        self._store, self._datasets, self._supervisor = store, datasets, supervisor
        self._changes, self._metrics, self._draining = changes, metrics, draining
        self._bases, self._folder = bases, folder
        self._class_image_cache, self._max_queued = class_image_cache, max_queued
        self._catalog, self._webhooks = catalog, webhooks
        self._allow_unserved = allow_unserved

    async def upload(self, account: str, pieces: AsyncIterator[Piece]) -> tuple[str, int]:
        """Keep a dataset; returns its id and the number of pictures."""
        try:
            kept = await self._upload(account, pieces)
        except (InvalidRequestError, OSError) as error:
            await _discard_rest(pieces)
            if is_disk_full(error):
                _LOGGER.error("no room for a dataset", extra={"why": str(error)})
                raise StorageFullError from error
            raise
        self._metrics.uploaded()
        return kept

    async def _upload(self, account: str, pieces: AsyncIterator[Piece]) -> tuple[str, int]:
        upload = await asyncio.to_thread(self._datasets.open_upload, account)
        try:
            async for piece in pieces:
                await asyncio.to_thread(upload.write, piece)
            return await asyncio.to_thread(upload.finish)
        finally:
            await asyncio.shield(asyncio.to_thread(upload.discard))

    async def create(
        self, account: str, key: str, request: JobRequest, *, reservation: str = ""
    ) -> TrainingJob:
        """Queue a job, or return the one under the key; `reservation` is what pays for it."""
        known = await self._known(account, key, request)
        if known is not None:
            return known
        job_id = job_id_of(reservation) if reservation else new_job_id()
        checked = await self._checked(account, key, request, job_id)
        job = await self._store.create(
            account,
            key,
            request,
            checked.tree,
            job_id,
            step_count=checked.step_count,
            reservation=reservation,
            warnings=checked.warnings,
        )
        self._supervisor.wake()
        return job

    async def plan(self, account: str, key: str, request: JobRequest) -> TrainingJob:
        """The job under the key, else the one that `create` would make, with an empty id."""
        known = await self._known(account, key, request)
        if known is not None:
            return known
        checked = await self._checked(account, key, request, "")
        now = datetime.now(UTC)
        return TrainingJob(
            id="",
            account=account,
            state="queued",
            request=request,
            tree=checked.tree,
            progress=JobProgress(step_count=checked.step_count),
            failure=None,
            cancel_requested=False,
            attempt=1,
            create_time=now,
            update_time=now,
            reservation="",
            warnings=checked.warnings,
        )

    async def get(self, account: str, job_id: str) -> TrainingJob:
        """A job of the account."""
        return await self._store.get(account, job_id)

    async def list(
        self, account: str, page_size: int, page_token: str
    ) -> tuple[list[TrainingJob], str]:
        """A page of jobs, the newest first, and the token of the next page or nothing."""
        if not 0 <= page_size <= _MAX_PAGE_SIZE:
            allowed = f"must be between 0 and {_MAX_PAGE_SIZE}; got {page_size}"
            raise InvalidRequestError([_fault("page_size", "OUT_OF_RANGE", allowed)])
        count = page_size or _PAGE_SIZE
        before = _read_token(page_token) if page_token else None
        jobs = await self._store.list_jobs(account, count + 1, before)
        page = jobs[:count]
        return page, _token(page[-1]) if len(jobs) > count else ""

    async def watch(
        self, account: str, job_id: str, *, with_samples: bool = False
    ) -> AsyncGenerator[tuple[TrainingJob, SamplePicture | None], None]:
        """The job now and after changes, until it has ended; each new sample picture, if wanted."""
        with self._changes.watch(job_id) as changed:
            last: TrainingJob | None = None
            shown: set[str] = set()
            while True:
                changed.clear()
                job = await self._store.get(account, job_id)
                if with_samples:
                    for sample in await asyncio.to_thread(new_samples, job, shown):
                        yield job, sample
                if job != last:
                    last = job
                    yield job, None
                if job.state in FINAL_STATES:
                    return
                if self._draining.is_set():
                    raise UnavailableError(reason="SHUTTING_DOWN")
                await changed.wait()

    async def cancel(self, account: str, job_id: str) -> TrainingJob:
        """Ask for a job's end."""
        await self._store.get(account, job_id)
        await self._store.cancel(job_id)
        self._changes.notify(job_id)
        return await self._store.get(account, job_id)

    async def resume(
        self, account: str, job_id: str, *, attempt: int | None = None, reservation: str = ""
    ) -> TrainingJob:
        """Queue a job that failed or was cancelled; `reservation` is what pays for the rest.

        With an `attempt`, only if that is the job's last one.
        """
        job = await self._store.get(account, job_id)
        seen = attempt or job.attempt
        await self._require_room()
        if not await self._store.resume(job_id, seen, reservation):
            job = await self._store.get(account, job_id)
            message = f"{_standing(job, seen)}; only one that failed or was cancelled can go on."
            raise JobStateError(message, reason="JOB_NOT_RESUMABLE")
        self._supervisor.wake()
        self._changes.notify(job_id)
        return await self._store.get(account, job_id)

    async def delete(self, account: str, job_id: str, *, attempt: int | None = None) -> None:
        """Remove a job that has ended, its files, and the model that came out of it.

        With an `attempt`, only if that is the job's last one.
        """
        job = await self._store.get(account, job_id)
        seen = attempt or job.attempt
        if job.state not in FINAL_STATES or job.attempt != seen:
            message = f"{_standing(job, seen)}; cancel it first."
            raise JobStateError(message, reason="JOB_NOT_ENDED")
        # The model goes first: a job that is still listed can be deleted again.
        await asyncio.to_thread(self._catalog.remove, account, job_id)
        if not await self._store.remove(job_id, seen):
            message = "The job was resumed meanwhile; cancel it first."
            raise JobStateError(message, reason="JOB_NOT_ENDED")
        await self._supervisor.forget(job_id)
        await asyncio.to_thread(_remove_files, self._folder / job_id)
        self._changes.notify(job_id)

    async def _known(self, account: str, key: str, request: JobRequest) -> TrainingJob | None:
        known = await self._store.find_by_key(account, key)
        if known is not None and known.request != request:
            raise IdempotencyKeyUsedError(known.id)
        return known

    async def _checked(
        self, account: str, key: str, request: JobRequest, job_id: str
    ) -> CheckedRequest:
        faults: list[FieldViolation] = []
        checked: CheckedRequest | None = None
        try:
            checked = await asyncio.to_thread(self._check, account, key, request, job_id)
        except InvalidRequestError as error:
            faults += error.violations
        if request.model_name and await self._store.has_model(account, request.model(job_id)):
            text = "another job of yours makes a model of this name; delete it or take another name"
            faults.append(_fault("model_name", "ALREADY_USED", text))
        if faults or checked is None:
            raise InvalidRequestError(faults)
        await self._require_room()
        return checked

    async def _require_room(self) -> None:
        if await self._store.queued_count() >= self._max_queued:
            raise QueueFullError(_QUEUE_RETRY_S)

    def _check(self, account: str, key: str, request: JobRequest, job_id: str) -> CheckedRequest:
        return check_request(
            request,
            idempotency_key=key,
            bases=self._bases,
            dataset=self._datasets.find(account, request.dataset_id),
            output=self._folder / job_id / "output",
            class_image_cache=self._class_image_cache,
            webhooks=self._webhooks,
            allow_unserved=self._allow_unserved,
        )


def _standing(job: TrainingJob, attempt: int) -> str:
    """Where a job stands, for whoever took it to be at `attempt`."""
    return f"The job {'' if job.attempt == attempt else 'was resumed meanwhile and '}is {job.state}"


async def _discard_rest(pieces: AsyncIterator[Piece]) -> None:
    """Read what is still to come, within bounds: gRPC loses a refusal that overtakes the writer."""
    size = 0
    async for piece in pieces:
        size += len(piece.data)
        if size > MAX_DATASET_BYTES:
            return


def _remove_files(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass  # a job that never ran has none
    except OSError as error:
        # The job is gone for its owner; its files are the operator's to remove.
        extra = {"folder": str(folder), "why": str(error)}
        _LOGGER.error("files of a deleted job remain", extra=extra)


def _token(job: TrainingJob) -> str:
    return urlsafe_b64encode(f"{job.create_time.isoformat()} {job.id}".encode()).decode()


def _read_token(token: str) -> tuple[datetime, str]:
    try:
        created, _, job_id = urlsafe_b64decode(token.encode()).decode().partition(" ")
        moment = datetime.fromisoformat(created)
        if moment.tzinfo is None:
            raise ValueError("no time zone")
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError, Base64Error) as error:
        raise InvalidRequestError(
            [_fault("page_token", "MALFORMED", "is no token of this server")]
        ) from error
    return moment, job_id


def _fault(field: str, reason: str, description: str) -> FieldViolation:
    return FieldViolation(field=field, reason=reason, description=description)
