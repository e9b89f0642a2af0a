"""Names for people and scripts of the contract's enums: `SAMPLER_DPMPP_2M` is `dpmpp_2m`.

Used wherever a request is built or an answer is read. The names are those of the proto without the
prefix, in lower case, so that a new enum value needs no change here.
"""

from __future__ import annotations

from google.protobuf.descriptor import EnumDescriptor

from limner.v1 import (
    account_pb2,
    admin_pb2,
    artifact_pb2,
    generation_pb2,
    model_pb2,
    training_pb2,
)
from services.client.errors import ArgumentError


class EnumNames:
    """The names of one enum; its zero value has none."""

    def __init__(self, enum: EnumDescriptor, *, what: str) -> None:
        prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
        self._what = what
        self._numbers = {
            value.name.removeprefix(prefix).lower(): value.number
            for value in enum.values
            if value.number
        }
        self._names = {number: name for name, number in self._numbers.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of the contract."""
        return tuple(self._numbers)

    def number(self, name: str, *, field: str) -> int:
        """Return the value with this name, for a field of a request.

        Raises ArgumentError that lists the names when there is none.
        """
        try:
            return self._numbers[name.lower()]
        except KeyError:
            message = f"unknown {self._what} {name!r}; one of {', '.join(self.names)}"
            raise ArgumentError(field, message) from None

    def name(self, number: int) -> str:
        """Return the name of a value; a value from a newer server is named by its number."""
        return self._names.get(number, str(number))


SAMPLERS = EnumNames(generation_pb2.Sampler.DESCRIPTOR, what="sampler")
IMAGE_FORMATS = EnumNames(artifact_pb2.ImageFormat.DESCRIPTOR, what="output format")
PICTURE_KINDS = EnumNames(model_pb2.PictureKind.DESCRIPTOR, what="kind of picture")
TASKS = EnumNames(model_pb2.Task.DESCRIPTOR, what="task")
SCOPES = EnumNames(account_pb2.Scope.DESCRIPTOR, what="scope")
TRAINING_STATES = EnumNames(training_pb2.TrainingJob.State.DESCRIPTOR, what="state of a job")
TRAINING_METHODS = EnumNames(training_pb2.TrainingMethod.DESCRIPTOR, what="method")
TRAINING_FAILURES = EnumNames(training_pb2.TrainingFailureReason.DESCRIPTOR, what="failure")
KEY_STATES = EnumNames(admin_pb2.Key.State.DESCRIPTOR, what="state of a key")
