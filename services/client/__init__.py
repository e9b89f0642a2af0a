"""Limner's Python SDK.

    from services.client import Client

    with Client() as client:
        client.generate("a red apple").image.save("apple.png")

`Client` is synchronous, `AsyncClient` for asyncio; both need only grpc and the generated stubs.
Errors are described in `services.client.errors`, options in `GenerateOptions`. The `limner` command
is in `services.client.cli`.
"""

from services.client.async_client import AsyncClient, AsyncGenerationStream
from services.client.catalog import Account, ImageDefaults, ImageLimits, Model, Vocabulary
from services.client.client import Client, GenerationStream
from services.client.enum_names import IMAGE_FORMATS, SAMPLERS
from services.client.errors import (
    Cancelled,
    DeadlineExceeded,
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

__all__ = [
    "IMAGE_FORMATS",
    "SAMPLERS",
    "Accepted",
    "Account",
    "AsyncClient",
    "AsyncGenerationStream",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Event",
    "GenerateOptions",
    "GeneratedImage",
    "GenerationResult",
    "GenerationStream",
    "ImageDefaults",
    "ImageLimits",
    "IncompleteStream",
    "InvalidRequest",
    "LimnerError",
    "Model",
    "ModelNotFound",
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
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "Vocabulary",
]
