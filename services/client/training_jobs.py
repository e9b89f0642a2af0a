"""Training jobs as frozen data, and the way of a request into its message.

Both clients read and build with this module. Nothing is validated that the server validates: its
answer lists all violations.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import PathLike
from typing import Any, TypeAlias, TypedDict

from limner.v1 import training_pb2
from services.client.enum_names import (
    TRAINING_FAILURES,
    TRAINING_METHODS,
    TRAINING_STATES,
)
from services.client.files import write_whole

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Uploaded pictures."""

    id: str
    picture_count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingWarning:
    """A remark about a request that did not stop it."""

    code: str
    """For example `TOKEN_IS_A_WORD`."""
    message: str
    field: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProgress:
    """How the newest step went."""

    instance_loss: float
    prior_loss: float | None
    """None without prior preservation."""
    validation_loss: float | None
    """None before the first validation."""
    learning_rate: float
    eta_s: float | None
    """Expected seconds until the last step."""
    class_picture_count: int
    """Class pictures that are there; they are drawn before the first step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """A training job as it was when the server answered."""

    id: str
    """Empty for one that was only planned."""
    state: str
    """`queued`, `running`, `succeeded`, `failed` or `cancelled`."""
    step: int
    step_count: int
    attempt: int
    base_model: str
    model: str
    """Name to draw with once it has succeeded."""
    method: str
    token: str
    dataset_id: str
    configuration_yaml: str
    created: datetime
    updated: datetime
    progress: TrainingProgress | None
    """None until the run has something to tell."""
    failure_reason: str
    """Like `out_of_memory`; empty unless it failed."""
    failure_message: str
    waiting_message: str
    """Why a cluster lets it wait; empty where it does not."""
    warnings: tuple[TrainingWarning, ...]
    webhook_url: str

    @property
    def has_ended(self) -> bool:
        """Whether it is succeeded, failed or cancelled."""
        return self.state in FINAL_STATES


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSample:
    """A picture that the model drew while it was trained."""

    step: int
    index: int
    """Which of the validation's prompts it shows."""
    data: bytes = field(repr=False)
    """An encoded picture."""
    mime_type: str

    def save(self, path: str | PathLike[str]) -> None:
        """Write the file whole or not at all. Raises OSError."""
        write_whole(path, self.data)


TrainingEvent: TypeAlias = TrainingJob | TrainingSample
"""What a watch yields."""


class TrainOptions(TypedDict, total=False):
    """Options of a training; the server's default holds where one is absent or None."""

    class_prompt: str | None
    """Prompt of the class, for prior preservation; none without it."""
    token: str | None
    """Word that means the subject, `sks` by default."""
    method: str | None
    """`lora` or `full`."""
    configuration_yaml: str | None
    """Further settings as YAML."""
    model_name: str | None
    """Name of the model that comes out, after `base@`; the job's id by default."""
    webhook_url: str | None
    """Who is told of changes of state."""
    webhook_secret: str | None
    """Key of the webhook's signatures."""
    idempotency_key: str | None
    """The same key with the same request is the same job; a new one by default."""


def build_create(
    dataset_id: str,
    *,
    base_model: str,
    instance_prompt: str,
    validate_only: bool = False,
    method: str | None = None,
    idempotency_key: str | None = None,
    **fields: Any,
) -> training_pb2.CreateTrainingJobRequest:
    """Return the request for a training. Raises ArgumentError for an unknown method, TypeError."""
    unknown = fields.keys() - TrainOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option: {', '.join(sorted(unknown))}")
    request = training_pb2.CreateTrainingJobRequest(
        idempotency_key=idempotency_key or uuid.uuid4().hex,
        dataset_id=dataset_id,
        base_model=base_model,
        instance_prompt=instance_prompt,
        validate_only=validate_only,
        **{name: value for name, value in fields.items() if value is not None},
    )
    if method is not None:
        request.method = TRAINING_METHODS.number(method, field="method")  # type: ignore[assignment]
    return request


def read_dataset(message: training_pb2.UploadDatasetResponse) -> Dataset:
    """Return the dataset in an answer."""
    return Dataset(id=message.dataset_id, picture_count=message.picture_count)


def read_job(message: training_pb2.TrainingJob) -> TrainingJob:
    """Return the job in an answer."""
    failed = bool(message.failure_reason)
    return TrainingJob(
        id=message.id,
        state=TRAINING_STATES.name(message.state),
        step=message.step,
        step_count=message.step_count,
        attempt=message.attempt,
        base_model=message.base_model,
        model=message.model,
        method=TRAINING_METHODS.name(message.method),
        token=message.token,
        dataset_id=message.dataset_id,
        configuration_yaml=message.configuration_yaml,
        created=message.create_time.ToDatetime(tzinfo=UTC),
        updated=message.update_time.ToDatetime(tzinfo=UTC),
        progress=_progress(message.progress) if message.HasField("progress") else None,
        failure_reason=TRAINING_FAILURES.name(message.failure_reason) if failed else "",
        failure_message=message.failure_message,
        waiting_message=message.waiting_message,
        warnings=tuple(
            TrainingWarning(code=each.code, message=each.message, field=each.field)
            for each in message.warnings
        ),
        webhook_url=message.webhook_url,
    )


class WatchReader:
    """Turns the messages of a watch into events; a sample comes once, also after a new start."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()
        self._last: TrainingJob | None = None

    def read(self, message: training_pb2.WatchTrainingJobResponse) -> Iterator[TrainingEvent]:
        """Yield what is new in a message."""
        if message.HasField("sample"):
            sample = message.sample
            place = (sample.step, sample.index)
            if place not in self._seen:
                self._seen.add(place)
                yield TrainingSample(
                    step=sample.step,
                    index=sample.index,
                    data=sample.image,
                    mime_type=sample.mime_type,
                )
            return
        job = read_job(message.job)
        if job != self._last:
            self._last = job
            yield job


def _progress(message: training_pb2.TrainingProgress) -> TrainingProgress:
    return TrainingProgress(
        instance_loss=message.instance_loss,
        prior_loss=message.prior_loss if message.HasField("prior_loss") else None,
        validation_loss=message.validation_loss if message.HasField("validation_loss") else None,
        learning_rate=message.learning_rate,
        eta_s=message.eta.ToTimedelta().total_seconds() if message.HasField("eta") else None,
        class_picture_count=message.class_picture_count,
    )
