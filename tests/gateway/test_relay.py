import asyncio
import threading
from contextlib import nullcontext

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from limner.v1 import generation_pb2 as pb
from services.gateway.generation_method import GenerationMethod
from tests.gateway.fake_backend import CHUNK_BYTES, backend
from tests.gateway.harness import error_info, failure, reason, running_gateway, until


async def test_events_arrive_as_the_backend_sent_them(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        events = [event async for event in door.generate(step_count=3)]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["accepted", "progress", "progress", "progress", "artifact"]
    assert events[-1].artifact.last
    assert events[0].accepted.model == "dots"


async def test_the_request_reaches_the_backend_unchanged_but_for_the_resolved_model(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        asked = {"seed": 7, "negative_prompt": "blur", "guidance_scale": 2.5, "width": 64}
        _ = [event async for event in door.generate(**asked)]
        _ = [event async for event in door.generate(model="dots", **asked)]
    resolved = pb.GenerateImageRequest(prompt="picture", model="dots", **asked)
    assert [seen.request for seen in fake.calls] == [resolved, resolved]


async def test_large_requests_are_read_beside_the_event_loop(tmp_path, monkeypatch):
    read, places = GenerationMethod.read, []

    def recorded(method, payload):
        places.append(threading.current_thread() is threading.main_thread())
        return read(method, payload)

    monkeypatch.setattr(GenerationMethod, "read", recorded)
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        for size in (1, 300_000):
            _ = [event async for event in door.generate(negative_prompt="x" * size)]
    assert places == [True, False]


async def test_request_id_account_and_priority_go_to_the_backend(tmp_path):
    forged = [("x-limner-account", "root"), ("x-limner-priority", "9"), ("x-limner-tier", "gold")]
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        call = door.generate(metadata=[("x-request-id", "request-1"), *forged])
        events = [event async for event in call]
        sent_back = dict(await call.trailing_metadata())
    seen = fake.calls[0]
    names = [name for name, _ in seen.metadata if name.startswith(("x-limner", "authorization"))]
    assert (seen.context.account, seen.context.priority) == ("acme", 0)
    assert names == ["x-limner-account"]  # the rest is as it is by default
    assert seen.context.request_id == sent_back["x-request-id"] == "request-1"
    assert events[0].accepted.request_id == "request-1"


async def test_cancel_reaches_the_backend(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        call = door.generate("hang")
        await anext(aiter(call))
        call.cancel()
        await until(lambda: fake.calls[0].outcome == "cancelled")
        await until(lambda: door.admission.closings == [["refund"]])


async def test_cancel_of_a_reader_that_does_not_read_frees_everything(tmp_path):
    """The handler is cancelled while it waits to write, not while it waits for an event."""
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        call = door.generate("endless")
        await anext(aiter(call))
        await asyncio.sleep(0.3)  # until the windows of both connections are full
        call.cancel()
        await until(lambda: fake.calls[0].outcome != "running")
        await until(lambda: door.metric("gateway_inflight") == 0)
        await until(lambda: door.admission.closings == [["refund"]])
        assert door.gateway.server.in_flight == 0


async def test_back_pressure_reaches_the_backend(tmp_path):
    """Nobody reads, so nobody may go on sending: memory stays with the transport's windows."""
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        call = door.generate("endless")
        await anext(aiter(call))
        await asyncio.sleep(0.5)
        held_up = fake.calls[0].sent_count
        await asyncio.sleep(0.5)
        assert 2 < fake.calls[0].sent_count <= held_up + 1
        assert held_up * CHUNK_BYTES < 16 * 2**20
        call.cancel()
        await until(lambda: fake.running_count == 0)


async def test_readers_that_stall_do_not_hold_up_others(tmp_path):
    """All streams share a connection to the backend, but not its flow control."""
    artifact_bytes = 2 * 2**20
    async with (
        backend(artifact_bytes=artifact_bytes) as fake,
        running_gateway(tmp_path, fake) as door,
        grpc.aio.insecure_channel(f"127.0.0.1:{door.gateway.port}") as other_client,
    ):
        stalled = [door.generate("endless") for _ in range(20)]
        for call in stalled:
            await anext(aiter(call))
        await asyncio.sleep(0.3)  # until their windows are full
        async with asyncio.timeout(30):
            events = [event async for event in door.generate(channel=other_client)]
        assert sum(len(event.artifact.data) for event in events) == artifact_bytes
        for call in stalled:
            call.cancel()
        await until(lambda: fake.running_count == 0)


async def test_deadline_reaches_the_backend(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        error = await failure(door.generate("hang", timeout=2))
        await until(lambda: fake.calls[0].outcome == "cancelled")
        _ = [event async for event in door.generate("picture")]
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with_deadline, without = fake.calls
    assert with_deadline.context.deadline is not None
    assert without.context.deadline is None


async def test_a_refusal_keeps_code_message_and_details(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        sent = [("x-request-id", "request-2")]
        error = await failure(door.generate("refuse", metadata=sent))
        async with grpc.aio.insecure_channel(fake.address) as direct:
            unrelayed = await failure(door.generate("refuse", metadata=sent, channel=direct))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == unrelayed.details()
    assert rpc_status.from_call(error) == rpc_status.from_call(unrelayed)
    violations = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[1].Unpack(violations)
    assert [v.field for v in violations.field_violations] == ["width", "step_count"]
    assert error_info(error).metadata["request_id"] == "request-2"


async def test_a_full_queue_keeps_its_retry_pushback(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        error = await failure(door.generate("queue full"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(error) == "QUEUE_FULL"
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1500"
    assert len(fake.calls) == 1  # a refusal is an answer: no other backend is asked


@pytest.mark.parametrize(
    ("prompt", "closing", "artifact_count"),
    [
        ("picture", "settle", 1),
        ("fail after picture", "settle", 1),
        ("refuse", "refund", None),
        ("queue full", "refund", None),
    ],
)
async def test_each_lease_is_closed_once_by_what_was_delivered(
    tmp_path, prompt, closing, artifact_count
):
    async with backend(artifact_bytes=600_000) as fake, running_gateway(tmp_path, fake) as door:
        with nullcontext() if prompt == "picture" else pytest.raises(grpc.aio.AioRpcError):
            _ = [event async for event in door.generate(prompt)]
        await until(lambda: door.admission.closings == [[closing]])
    delivered = door.admission.leases[0].delivered
    if artifact_count is not None:
        assert (delivered.artifact_count, delivered.size_bytes) == (1, 600_000)
    else:
        assert delivered is None


async def test_a_cancel_after_a_finished_picture_charges_it(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        call = door.generate("picture, then hang")
        async for event in call:
            if event.artifact.last:
                break
        await until(lambda: fake.running_count == 1)
        await asyncio.sleep(0.1)  # the gateway counts a chunk once the transport has taken it
        call.cancel()
        await until(lambda: door.admission.closings == [["settle"]])
    assert door.admission.leases[0].delivered.artifact_count == 1


async def test_a_malformed_message_is_an_invalid_argument(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        raw = door.channel.unary_stream("/limner.v1.GenerationService/GenerateImage")
        error = await failure(raw(b"\xff\xff\xff", metadata=door.authorization))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason(error) == "INVALID_REQUEST"
    assert not fake.calls
