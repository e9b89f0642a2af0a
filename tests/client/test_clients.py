"""What both clients promise; every test runs against a real channel, once for each client."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import grpc
import pytest
from google.rpc import error_details_pb2

from limner.v1 import artifact_pb2, generation_pb2, model_pb2
from services.client import (
    Aborted,
    Accepted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    GeneratedImage,
    IncompleteStream,
    InvalidRequest,
    LimnerError,
    ModelNotFound,
    Preview,
    Progress,
    Queued,
    QueueFull,
    ResourceExhausted,
    ServerError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from tests.client import scripted_server as script
from tests.client.facade import AsyncFacade, Facade, SyncFacade
from tests.client.scripted_server import PNG, ScriptedServer


@pytest.fixture(params=[SyncFacade, AsyncFacade], ids=["sync", "asyncio"])
def calls(request: pytest.FixtureRequest) -> Facade:
    facade: Facade = request.param()
    return facade


def test_a_stream_carries_every_event_in_order(server: ScriptedServer, calls: Facade) -> None:
    events = calls.events(server.address, "a dog", step_count=2, preview_interval=1)
    assert [type(event) for event in events] == [
        *(Accepted, Queued, Queued, Progress, Progress, Preview, GeneratedImage)
    ]
    assert events[1] == Queued(position=2)
    assert events[4] == Progress(completed_step_count=2, total_step_count=2)
    assert events[5] == Preview(index=0, step=2, data=PNG, mime_type="image/png")
    assert events[6] == GeneratedImage(
        index=0, data=PNG, mime_type="image/png", seed=7, width=128, height=64
    )


def test_every_option_reaches_the_server(server: ScriptedServer, calls: Facade) -> None:
    result = calls.generate(
        server.address,
        "a dog",
        model="emoji",
        negative_prompt="a cat",
        width=64,
        height=32,
        step_count=3,
        guidance_scale=0.0,
        seed=0,
        sampler="dpmpp_2m_karras",
        sample_count=2,
        output_format="webp",
        preview_interval=1,
    )
    assert server.requests == [
        generation_pb2.GenerateImageRequest(
            prompt="a dog",
            model="emoji",
            negative_prompt="a cat",
            width=64,
            height=32,
            step_count=3,
            guidance_scale=0.0,
            seed=0,
            sampler=generation_pb2.SAMPLER_DPMPP_2M_KARRAS,
            sample_count=2,
            output_format=artifact_pb2.IMAGE_FORMAT_WEBP,
            preview_interval=1,
        )
    ]
    assert server.requests[0].HasField("seed")
    assert [image.seed for image in result.images] == [7, 8]
    assert result.accepted.sampler == "dpmpp_2m_karras"
    assert result.accepted.output_format == "webp"


def test_absent_options_are_left_to_the_server(server: ScriptedServer, calls: Facade) -> None:
    calls.generate(server.address, "a dog", seed=None, width=None, sampler=None)
    assert server.requests == [generation_pb2.GenerateImageRequest(prompt="a dog")]


def test_progress_is_passed_to_the_callers_function(server: ScriptedServer, calls: Facade) -> None:
    seen: list[Progress] = []
    calls.generate(server.address, "a dog", step_count=3, on_progress=seen.append)
    assert [each.completed_step_count for each in seen] == [1, 2, 3]


def test_an_invalid_request_lists_every_violation(server: ScriptedServer, calls: Facade) -> None:
    def generate(request: object, context: grpc.ServicerContext) -> script.Responses:
        bad = error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(
                    field="width", description="must be a multiple of 8", reason="NOT_A_MULTIPLE"
                ),
                error_details_pb2.BadRequest.FieldViolation(
                    field="seed", description="must not be negative", reason="OUT_OF_RANGE"
                ),
            ]
        )
        info = script.error_info("INVALID_REQUEST", request_id="abc")
        script.fail(context, grpc.StatusCode.INVALID_ARGUMENT, "bad", info, bad)
        yield from ()

    server.generate = generate
    with pytest.raises(InvalidRequest) as caught:
        calls.generate(server.address, "a dog")
    assert [(each.field, each.reason) for each in caught.value.violations] == [
        ("width", "NOT_A_MULTIPLE"),
        ("seed", "OUT_OF_RANGE"),
    ]
    assert caught.value.reason == "INVALID_REQUEST"
    assert caught.value.request_id == "abc"
    assert str(caught.value) == "width: must be a multiple of 8; seed: must not be negative"


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", ModelNotFound),
        (grpc.StatusCode.UNAUTHENTICATED, "KEY_REVOKED", Unauthenticated),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", QueueFull),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "MONTHLY_QUOTA", ResourceExhausted),
        (grpc.StatusCode.INTERNAL, "QUEUE_FULL", ServerError),
        (grpc.StatusCode.DATA_LOSS, "", ServerError),
        (grpc.StatusCode.ALREADY_EXISTS, "", AlreadyExists),
        (grpc.StatusCode.ABORTED, "", Aborted),
        (grpc.StatusCode.FAILED_PRECONDITION, "", FailedPrecondition),
        (grpc.StatusCode.UNIMPLEMENTED, "", Unimplemented),
    ],
)
def test_each_failure_has_its_own_type(
    server: ScriptedServer,
    calls: Facade,
    code: grpc.StatusCode,
    reason: str,
    kind: type[LimnerError],
) -> None:
    def generate(request: object, context: grpc.ServicerContext) -> script.Responses:
        info = script.error_info(reason)
        script.fail(context, code, "it failed", info, script.retry_info(1500))
        yield from ()

    server.generate = generate
    with pytest.raises(kind) as caught:
        calls.events(server.address, "a dog")
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert str(caught.value) == "it failed"
    assert caught.value.retry_after_s == 1.5
    assert server.call_count == 1


def test_details_that_cannot_be_read_leave_code_and_message(
    server: ScriptedServer, calls: Facade
) -> None:
    def generate(request: object, context: grpc.ServicerContext) -> script.Responses:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
        yield from ()

    server.generate = generate
    with pytest.raises(LimnerError, match="no such thing") as caught:
        calls.generate(server.address, "a dog")
    assert caught.value.reason == ""


class Flaky:
    """Fails a number of times, after a number of events, then draws."""

    def __init__(self, failure_count: int, *, events_before: int = 0, retry_ms: int = 10) -> None:
        self.failure_count = failure_count
        self.events_before = events_before
        self.retry_ms = retry_ms

    def __call__(
        self, request: generation_pb2.GenerateImageRequest, context: grpc.ServicerContext
    ) -> script.Responses:
        if self.failure_count == 0:
            yield from script.draw(request, context)
            return
        self.failure_count -= 1
        if self.events_before:
            yield script.accepted(request)
        info = script.error_info("SHUTTING_DOWN")
        details = (info, script.retry_info(self.retry_ms))
        script.fail(context, grpc.StatusCode.UNAVAILABLE, "going away", *details)


def test_unavailable_before_the_first_event_is_tried_again(
    server: ScriptedServer, calls: Facade
) -> None:
    server.generate = Flaky(2)
    assert calls.generate(server.address, "a dog").image.data == PNG
    assert server.call_count == 3


def test_unavailable_after_the_first_event_is_never_tried_again(
    server: ScriptedServer, calls: Facade
) -> None:
    server.generate = Flaky(1, events_before=1)
    with pytest.raises(Unavailable, match="going away"):
        calls.generate(server.address, "a dog")
    assert server.call_count == 1


def test_attempts_are_bounded(server: ScriptedServer, calls: Facade) -> None:
    server.generate = Flaky(100)
    with pytest.raises(Unavailable):
        calls.generate(server.address, "a dog")
    assert server.call_count == 4


def test_a_server_that_asks_for_a_long_wait_is_left_alone(
    server: ScriptedServer, calls: Facade
) -> None:
    server.generate = Flaky(1, retry_ms=60_000)
    with pytest.raises(Unavailable) as caught:
        calls.generate(server.address, "a dog")
    assert caught.value.retry_after_s == 60
    assert server.call_count == 1


def test_no_attempt_is_made_that_the_timeout_cannot_reach(
    server: ScriptedServer, calls: Facade
) -> None:
    server.generate = Flaky(1, retry_ms=4_000)
    with pytest.raises(Unavailable):
        calls.generate(server.address, "a dog", timeout_s=3)
    assert server.call_count == 1


@pytest.mark.parametrize("timeout_s", [1e12, float("inf")])
def test_a_timeout_of_centuries_has_not_passed(
    server: ScriptedServer, calls: Facade, timeout_s: float
) -> None:
    assert calls.generate(server.address, "a dog", timeout_s=timeout_s).image.data == PNG


def test_the_timeout_ends_a_silent_stream(server: ScriptedServer, calls: Facade) -> None:
    release = threading.Event()

    def generate(
        request: generation_pb2.GenerateImageRequest, context: grpc.ServicerContext
    ) -> script.Responses:
        yield script.accepted(request)
        release.wait(30)

    server.generate = generate
    with pytest.raises(DeadlineExceeded):
        calls.generate(server.address, "a dog", timeout_s=0.3)
    release.set()


@pytest.mark.parametrize(
    "broken",
    [
        [],
        [script.progress(1, 4)],
        [script.accepted(generation_pb2.GenerateImageRequest(sample_count=2)), *script.image(0)],
        [
            script.accepted(generation_pb2.GenerateImageRequest()),
            script.chunk(0, PNG, first=False, last=True),
        ],
        [
            script.accepted(generation_pb2.GenerateImageRequest()),
            script.chunk(0, PNG[:9], first=True, last=True),
        ],
        [
            script.accepted(generation_pb2.GenerateImageRequest()),
            script.chunk(0, PNG, first=True, last=False, size_bytes=3),
        ],
        [
            script.accepted(generation_pb2.GenerateImageRequest(sample_count=2)),
            script.chunk(0, PNG[:9], first=True, last=False),
            script.chunk(1, PNG, first=True, last=True),
        ],
        [
            script.accepted(generation_pb2.GenerateImageRequest(sample_count=2)),
            *script.image(0),
            *script.image(0),
        ],
    ],
    ids=[
        *("empty", "not-accepted", "one-of-two", "no-info", "too-short", "too-long"),
        *("interleaved", "twice"),
    ],
)
def test_a_stream_that_breaks_the_contract_is_an_error(
    server: ScriptedServer, calls: Facade, broken: list[generation_pb2.GenerateImageResponse]
) -> None:
    server.generate = lambda request, context: iter(broken)
    with pytest.raises(IncompleteStream):
        calls.generate(server.address, "a dog")


def test_events_and_names_of_a_newer_server_are_tolerated(
    server: ScriptedServer, calls: Facade
) -> None:
    def generate(
        request: generation_pb2.GenerateImageRequest, context: grpc.ServicerContext
    ) -> script.Responses:
        first = script.accepted(request)
        first.accepted.sampler = 99  # type: ignore[assignment]
        yield first
        yield generation_pb2.GenerateImageResponse()
        yield from script.image(0)

    server.generate = generate
    assert calls.generate(server.address, "a dog").accepted.sampler == "99"


def test_an_unknown_sampler_is_refused_before_the_call(
    server: ScriptedServer, calls: Facade
) -> None:
    with pytest.raises(ValueError, match=r"unknown sampler 'plms'; one of ddim, .*lcm"):
        calls.generate(server.address, "a dog", sampler="plms")
    with pytest.raises(ValueError, match="width: "):
        calls.generate(server.address, "a dog", width=2**40)
    with pytest.raises(ValueError, match=r"prompt: .* cannot be written in UTF-8"):
        calls.generate(server.address, "a \udcff dog")
    with pytest.raises(TypeError, match="unknown option: with"):
        calls.generate(server.address, "a dog", **{"with": 3})
    assert server.call_count == 0


def test_the_key_is_sent_as_a_bearer_token(
    server: ScriptedServer, calls: Facade, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls.models(server.address)
    calls.models(server.address, api_key="one\n")
    monkeypatch.setenv("LIMNER_API_KEY", "two")
    calls.models(server.address)
    sent = [metadata.get("authorization") for metadata in server.metadata]
    assert sent == [None, "Bearer one", "Bearer two"]


def test_a_key_that_cannot_be_sent_is_refused_without_showing_it() -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        SyncFacade().models("127.0.0.1:1", api_key="secret\nkey")
    assert "secret" not in str(caught.value)


def test_models_are_read_in_full(server: ScriptedServer, calls: Facade) -> None:
    server.models.models.add(
        name="emoji",
        tasks=[model_pb2.TASK_TEXT_TO_IMAGE],
        samplers=[generation_pb2.SAMPLER_DDIM, generation_pb2.SAMPLER_LCM],
        limits=model_pb2.ImageLimits(min_side=64, max_side=256),
        defaults=model_pb2.ImageDefaults(sampler=generation_pb2.SAMPLER_DPMPP_2M),
        vocabulary=model_pb2.Vocabulary(concepts=["red apple"], backgrounds=["blue"]),
    )
    server.models.models.add(name="sd15")
    emoji, sd15 = calls.models(server.address)
    assert emoji.tasks == ("text_to_image",)
    assert emoji.samplers == ("ddim", "lcm")
    assert (emoji.limits.min_side, emoji.limits.max_side) == (64, 256)
    assert emoji.defaults.sampler == "dpmpp_2m"
    assert emoji.vocabulary is not None
    assert emoji.vocabulary.concepts == ("red apple",)
    assert sd15.vocabulary is None


def test_unary_calls_are_tried_again_too(server: ScriptedServer, calls: Facade) -> None:
    def unavailable(context: grpc.ServicerContext) -> None:
        script.fail(context, grpc.StatusCode.UNAVAILABLE, "soon", script.retry_info(1))

    server.unary_failures = [unavailable, unavailable]
    assert calls.models(server.address) == ()
    assert server.call_count == 3


def test_the_account_is_read_with_its_time(server: ScriptedServer, calls: Facade) -> None:
    server.account.account = "studio"
    server.account.key_id = "k1"
    assert calls.account(server.address).key_create_time is None
    server.account.key_create_time.FromJsonString("2026-01-02T03:04:05Z")
    account = calls.account(server.address)
    assert (account.account, account.key_id) == ("studio", "k1")
    assert account.key_create_time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
