"""Trainings over TrainingService, synchronous: `Client.trainings`.

    dataset = client.trainings.upload(["1.jpg", "2.jpg", "3.jpg"])
    job = client.trainings.create(
        dataset.id, base_model="sd15", instance_prompt="a photo of sks dog"
    )
    for event in client.trainings.watch(job.id): ...

All methods raise LimnerError.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, Unpack

import grpc

from limner.v1 import training_pb2, training_pb2_grpc
from services.client.admin import Call
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

_PAGE_SIZE = 100
Metadata: TypeAlias = tuple[tuple[str, str], ...]


class Trainings:
    """Datasets and training jobs of the caller's account."""

    def __init__(
        self,
        channel: grpc.Channel,
        call: Call,
        *,
        metadata: Metadata,
        attempts: Callable[[], Attempts],
    ) -> None:
        self._stub = training_pb2_grpc.TrainingServiceStub(channel)
        self._call, self._metadata, self._attempts = call, metadata, attempts

    def upload(self, pictures: Iterable[Picture], *, captions: bool = False) -> Dataset:
        """Upload pictures to learn from; the same ones give the same dataset.

        With `captions`, what a picture shows is taken from the `.txt` file beside it.

        Raises InvalidRequest with what is wrong with each, OSError for an unreadable file, and
        ArgumentError for a name or caption that no message holds.
        """
        timeout_s = self._attempts().remaining_s()
        upload = Upload(pictures, captions=captions)
        try:
            response = self._stub.UploadDataset(
                iter(upload), timeout=timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as failure:
            if upload.failure is not None:
                raise upload.failure from None
            raise decode_error(failure) from failure
        return read_dataset(response)

    def create(
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
        return read_job(self._call(self._stub.CreateTrainingJob, request).job)

    def plan(
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
        return read_job(self._call(self._stub.CreateTrainingJob, request).job)

    def get(self, job_id: str) -> TrainingJob:
        """Return a job."""
        request = training_pb2.GetTrainingJobRequest(id=job_id)
        return read_job(self._call(self._stub.GetTrainingJob, request).job)

    def list(self) -> Iterator[TrainingJob]:
        """Yield all jobs, the newest first."""
        request = training_pb2.ListTrainingJobsRequest(page_size=_PAGE_SIZE)
        while True:
            page = self._call(self._stub.ListTrainingJobs, request)
            yield from map(read_job, page.jobs)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def watch(self, job_id: str, *, with_samples: bool = False) -> Iterator[TrainingEvent]:
        """Yield the job now, after changes, and last when it has ended; samples, if wanted.

        A server that is away meanwhile is asked again, as often as the client's policy says.
        """
        request = training_pb2.WatchTrainingJobRequest(id=job_id, with_samples=with_samples)
        reader, attempts = WatchReader(), self._attempts()
        while True:
            timeout_s = attempts.remaining_s()
            call = self._stub.WatchTrainingJob(request, timeout=timeout_s, metadata=self._metadata)
            try:
                for message in call:
                    attempts.succeeded()
                    yield from reader.read(message)
                return
            except grpc.RpcError as failure:
                delay_s = attempts.delay_s(decode_error(failure), answered=False)
            finally:
                call.cancel()
            time.sleep(delay_s)

    def cancel(self, job_id: str) -> TrainingJob:
        """Ask for a job's end; it keeps its last checkpoint."""
        request = training_pb2.CancelTrainingJobRequest(id=job_id)
        return read_job(self._call(self._stub.CancelTrainingJob, request).job)

    def resume(self, job_id: str) -> TrainingJob:
        """Put a job that failed or was cancelled back into the queue."""
        request = training_pb2.ResumeTrainingJobRequest(id=job_id)
        return read_job(self._call(self._stub.ResumeTrainingJob, request, repeatable=False).job)

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended, with its files and the model that came out of it."""
        request = training_pb2.DeleteTrainingJobRequest(id=job_id)
        self._call(self._stub.DeleteTrainingJob, request, repeatable=False)
