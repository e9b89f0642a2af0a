"""What the training service refuses, beside what every service does.

LimnerError
├── JobNotFoundError         NOT_FOUND            JOB_NOT_FOUND
├── JobExistsError           ALREADY_EXISTS       JOB_EXISTS
├── IdempotencyKeyUsedError  ALREADY_EXISTS       IDEMPOTENCY_KEY_USED
└── JobStateError            FAILED_PRECONDITION  JOB_NOT_RESUMABLE | JOB_NOT_ENDED
"""

from __future__ import annotations

from typing import Literal

import grpc

from services.runtime.errors import LimnerError


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
