"""What the training service refuses, beside what every service does.

LimnerError
├── JobNotFoundError         NOT_FOUND            JOB_NOT_FOUND
├── JobExistsError           ALREADY_EXISTS       JOB_EXISTS
├── IdempotencyKeyUsedError  ALREADY_EXISTS       IDEMPOTENCY_KEY_USED
├── JobStateError            FAILED_PRECONDITION  JOB_NOT_RESUMABLE | JOB_NOT_ENDED
├── StorageFullError         RESOURCE_EXHAUSTED   STORAGE_FULL
└── StoreDownError           UNAVAILABLE          NOT_READY, an UnavailableError
"""

from __future__ import annotations

from typing import Literal

import grpc

from services.runtime.errors import LimnerError, UnavailableError


class JobNotFoundError(LimnerError):
    """The account has no such job."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "JOB_NOT_FOUND"

    def __init__(self, job_id: str) -> None:
        super().__init__("There is no such training job.", metadata={"job": job_id})


class IdempotencyKeyUsedError(LimnerError):
    """The key belongs to a job that was asked for differently."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "IDEMPOTENCY_KEY_USED"

    def __init__(self, job_id: str) -> None:
        super().__init__(
            "Another request came under this idempotency key.", metadata={"job": job_id}
        )


class JobExistsError(LimnerError):
    """Another job has its id or the name of its model; asked for at the same moment."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "JOB_EXISTS"

    def __init__(self, job_id: str) -> None:
        super().__init__(
            "Another job has this id or makes a model of this name.", metadata={"job": job_id}
        )


class JobStateError(LimnerError):
    """The job is in a state that does not allow it; nothing was changed."""

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(
        self, message: str, *, reason: Literal["JOB_NOT_RESUMABLE", "JOB_NOT_ENDED"]
    ) -> None:
        super().__init__(message)
        self.reason = reason


class StorageFullError(LimnerError):
    """The trainer has no room for what was sent; nothing of it was kept."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "STORAGE_FULL"

    def __init__(self) -> None:
        super().__init__("The trainer's disk is full; nothing was kept.")


class StoreDownError(UnavailableError):
    """The database of jobs is away or cannot write; `why` is for the log."""

    def __init__(self, why: str) -> None:
        super().__init__("Jobs cannot be stored now; try again in a moment.", reason="NOT_READY")
        self.why = why
