"""Limner's Python SDK.

    from services.client import Client

    with Client() as client:
        client.generate("a red apple").image.save("apple.png")

`Client` is synchronous, `AsyncClient` for asyncio; both need only grpc and the generated stubs.
Errors are described in `services.client.errors`, options in `GenerateOptions`. The `limner` command
is in `services.client.cli`.
"""

from services.client.accounts import AuditEntry, Key, ManagedAccount, NewKey, Tier, Usage
from services.client.admin import Admin
from services.client.async_client import AsyncClient
from services.client.async_stream import AsyncGenerationStream, AsyncUpscaleStream
from services.client.async_trainings import AsyncTrainings
from services.client.catalog import (
    Account,
    ImageDefaults,
    ImageLimits,
    Model,
    UpscaleLimits,
    Vocabulary,
)
from services.client.client import Client
from services.client.enum_names import IMAGE_FORMATS, SAMPLERS
from services.client.errors import (
    Aborted,
    AlreadyExists,
    ArgumentError,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    IncompleteStream,
    InvalidRequest,
    LimnerError,
    ModelNotFound,
    NotFound,
    PermissionDenied,
    QueueFull,
    ResourceExhausted,
    ServerError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
)
from services.client.events import (
    Accepted,
    Event,
    GeneratedImage,
    GenerationResult,
    Notice,
    Preview,
    Progress,
    Queued,
)
from services.client.request import GenerateOptions
from services.client.retry import RetryPolicy
from services.client.stream import GenerationStream, UpscaleStream
from services.client.training_jobs import (
    Dataset,
    TrainingEvent,
    TrainingJob,
    TrainingProgress,
    TrainingSample,
    TrainingWarning,
    TrainOptions,
)
from services.client.trainings import Trainings
from services.client.upscale_events import (
    TileProgress,
    UpscaleAccepted,
    UpscaledImage,
    UpscaleEvent,
    UpscaleResult,
)
from services.client.upscale_request import UpscaleOptions

__all__ = [
    "IMAGE_FORMATS",
    "SAMPLERS",
    "Aborted",
    "Accepted",
    "Account",
    "Admin",
    "AlreadyExists",
    "ArgumentError",
    "AsyncClient",
    "AsyncGenerationStream",
    "AsyncTrainings",
    "AsyncUpscaleStream",
    "AuditEntry",
    "Cancelled",
    "Client",
    "Dataset",
    "DeadlineExceeded",
    "Event",
    "FailedPrecondition",
    "GenerateOptions",
    "GeneratedImage",
    "GenerationResult",
    "GenerationStream",
    "ImageDefaults",
    "ImageLimits",
    "IncompleteStream",
    "InvalidRequest",
    "Key",
    "LimnerError",
    "ManagedAccount",
    "Model",
    "ModelNotFound",
    "NewKey",
    "NotFound",
    "Notice",
    "PermissionDenied",
    "Preview",
    "Progress",
    "QueueFull",
    "Queued",
    "ResourceExhausted",
    "RetryPolicy",
    "ServerError",
    "Tier",
    "TileProgress",
    "TrainOptions",
    "TrainingEvent",
    "TrainingJob",
    "TrainingProgress",
    "TrainingSample",
    "TrainingWarning",
    "Trainings",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UpscaleAccepted",
    "UpscaleEvent",
    "UpscaleLimits",
    "UpscaleOptions",
    "UpscaleResult",
    "UpscaleStream",
    "UpscaledImage",
    "Usage",
    "Violation",
    "Vocabulary",
]
