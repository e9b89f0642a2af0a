"""Trainings over TrainingService for asyncio: `AsyncClient.trainings`.

The methods are those of `services.client.trainings`, with `await`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Protocol, TypeVar, Unpack

import grpc

from limner.v1 import training_pb2, training_pb2_grpc
from services.client.errors import decode_error
from services.client.retry import Attempts
from services.client.training_jobs import (
    Dataset,
    TrainingEvent,
    TrainingJob,
    TrainOptions,
    WatchReader,
    build_create,
    read_dataset,
    read_job,
)
from services.client.upload import Picture, Upload

_Request = TypeVar("_Request", contravariant=True)
_Response = TypeVar("_Response", covariant=True)

_PAGE_SIZE = 100


class _Call(Protocol):
    """Makes a call, with the client's key and deadline."""

    async def __call__(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout_s: float | None = None,
        *,
        repeatable: bool = True,
    ) -> _Response: ...


class AsyncTrainings:
    """Datasets and training jobs of the caller's account."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        call: _Call,
        *,
        metadata: tuple[tuple[str, str], ...],
        attempts: Callable[[], Attempts],
    ) -> None:
        self._stub: training_pb2_grpc.TrainingServiceAsyncStub = (
            training_pb2_grpc.TrainingServiceStub(channel)
        )
        self._call, self._metadata, self._attempts = call, metadata, attempts

    async def upload(self, pictures: Iterable[Picture], *, captions: bool = False) -> Dataset:
        """Upload pictures to learn from; see `Trainings.upload`."""
        timeout_s = self._attempts().remaining_s()
        upload = Upload(pictures, captions=captions)
        try:
            response = await self._stub.UploadDataset(
                _in_threads(upload), timeout=timeout_s, metadata=self._metadata
            )
        except asyncio.CancelledError:  # what grpc makes of messages that end with an error
            if upload.failure is not None:
                raise upload.failure from None
            raise
        except grpc.aio.AioRpcError as failure:
            raise decode_error(failure) from failure
        return read_dataset(response)

    async def create(
        self,
        dataset_id: str,
        *,
        base_model: str,
        instance_prompt: str,
        **options: Unpack[TrainOptions],
    ) -> TrainingJob:
        """Create a job and reserve the credits of its steps. Raises ArgumentError for a method."""
        request = build_create(
            dataset_id, base_model=base_model, instance_prompt=instance_prompt, **options
        )
        return read_job((await self._call(self._stub.CreateTrainingJob, request)).job)

    async def plan(
        self,
        dataset_id: str,
        *,
        base_model: str,
        instance_prompt: str,
        **options: Unpack[TrainOptions],
    ) -> TrainingJob:
        """Check what `create` would do, and return its job without an id; nothing is stored."""
        request = build_create(
            dataset_id,
            base_model=base_model,
            instance_prompt=instance_prompt,
            validate_only=True,
            **options,
        )
        return read_job((await self._call(self._stub.CreateTrainingJob, request)).job)

    async def get(self, job_id: str) -> TrainingJob:
        """Return a job."""
        request = training_pb2.GetTrainingJobRequest(id=job_id)
        return read_job((await self._call(self._stub.GetTrainingJob, request)).job)

    async def list(self) -> AsyncIterator[TrainingJob]:
        """Yield all jobs, the newest first."""
        request = training_pb2.ListTrainingJobsRequest(page_size=_PAGE_SIZE)
        while True:
            page = await self._call(self._stub.ListTrainingJobs, request)
            for job in page.jobs:
                yield read_job(job)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def watch(
        self, job_id: str, *, with_samples: bool = False
    ) -> AsyncIterator[TrainingEvent]:
        """Yield the job now, after changes, and last when it has ended; samples, if wanted."""
        request = training_pb2.WatchTrainingJobRequest(id=job_id, with_samples=with_samples)
        reader, attempts = WatchReader(), self._attempts()
        while True:
            timeout_s = attempts.remaining_s()
            call = self._stub.WatchTrainingJob(request, timeout=timeout_s, metadata=self._metadata)
            try:
                async for message in call:
                    attempts.succeeded()
                    for event in reader.read(message):
                        yield event
                return
            except grpc.aio.AioRpcError as failure:
                delay_s = attempts.delay_s(decode_error(failure), answered=False)
            finally:
                call.cancel()
            await asyncio.sleep(delay_s)

    async def cancel(self, job_id: str) -> TrainingJob:
        """Ask for a job's end; it keeps its last checkpoint."""
        request = training_pb2.CancelTrainingJobRequest(id=job_id)
        return read_job((await self._call(self._stub.CancelTrainingJob, request)).job)

    async def resume(self, job_id: str) -> TrainingJob:
        """Put a job that failed or was cancelled back into the queue."""
        request = training_pb2.ResumeTrainingJobRequest(id=job_id)
        answer = await self._call(self._stub.ResumeTrainingJob, request, repeatable=False)
        return read_job(answer.job)

    async def delete(self, job_id: str) -> None:
        """Remove a job that has ended, with its files and the model that came out of it."""
        request = training_pb2.DeleteTrainingJobRequest(id=job_id)
        await self._call(self._stub.DeleteTrainingJob, request, repeatable=False)


async def _in_threads(upload: Upload) -> AsyncIterator[training_pb2.UploadDatasetRequest]:
    """The messages of an upload; files are read without the event loop's waiting."""
    messages = iter(upload)
    while (message := await asyncio.to_thread(next, messages, None)) is not None:
        yield message
