"""Loading, health, cancellation, draining: the server from its start to its end."""

from __future__ import annotations

import asyncio
import gc
import random
import threading

import grpc
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from limner.v1 import generation_pb2, model_pb2
from services.diffusion.batching.job import Job, Row
from services.diffusion.model import LoadedModel, ModelSpec
from services.runtime.event_channel import EventChannel
from tests.diffusion.batching.doubles import AnalyticModel
from tests.diffusion.service.harness import GatedModel, Request, Running, pictures, serving, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def _health(running: Running) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
    stub = health_pb2_grpc.HealthStub(running.channel)
    response = await stub.Check(
        health_pb2.HealthCheckRequest(service="limner.v1.GenerationService")
    )
    return response.status


async def test_health_answers_not_serving_while_models_load_and_serving_afterwards() -> None:
    gate = threading.Event()

    def load(spec: ModelSpec) -> LoadedModel:
        gate.wait()
        return AnalyticModel(spec.name)

    async with serving(load=load, wait=False) as running:
        assert await _health(running) == NOT_SERVING
        with pytest.raises(AioRpcError) as raised:
            await running.generation.GenerateImage(Request(prompt="a dog")).read()
        assert raised.value.code() is StatusCode.UNAVAILABLE
        assert (await running.models.ListModels(model_pb2.ListModelsRequest())).models == []
        gate.set()
        await running.server.loaded()
        assert await _health(running) == SERVING


async def test_a_model_that_does_not_load_makes_the_server_fail_with_its_reason() -> None:
    def load(spec: ModelSpec) -> LoadedModel:
        raise FileNotFoundError("no such folder")

    async with serving(load=load, wait=False) as running:
        error = await running.server.failed
        assert isinstance(error, FileNotFoundError)
        assert await _health(running) == NOT_SERVING


async def test_models_are_listed_by_name_with_limits_defaults_and_samplers() -> None:
    async with serving(AnalyticModel("two"), AnalyticModel("one")) as running:
        response = await running.models.ListModels(model_pb2.ListModelsRequest())
    assert [model.name for model in response.models] == ["one", "two"]
    model = response.models[0]
    assert model.revision == "0123456789abcdef"
    assert list(model.tasks) == [model_pb2.TASK_TEXT_TO_IMAGE]
    assert sorted(model.samplers) == sorted(n for n in generation_pb2.Sampler.values() if n)
    assert model.limits.max_pixel_count == 128 * 64
    assert model.defaults.sampler == generation_pb2.SAMPLER_DDIM
    assert list(model.vocabulary.concepts) == ["red apple"]


async def test_a_cancelled_stream_frees_its_rows_after_the_model_call_that_runs() -> None:
    model = GatedModel()
    async with serving(model) as running:
        call = running.generation.GenerateImage(Request(prompt="a dog", step_count=50))
        await until(lambda: running.server.batcher.running_count == 1)
        model.permit(2)
        await until(lambda: model.begun_count == 3)
        call.cancel()
        await until(lambda: running.server.grpc.in_flight == 0)
        model.permit(1)
        await until(lambda: running.server.batcher.running_count == 0)
        assert len(model.calls) == 3
        model.open()


async def test_a_deadline_ends_the_stream_and_frees_the_rows() -> None:
    model = GatedModel()
    async with serving(model) as running:
        request = Request(prompt="a dog", step_count=50)
        call = running.generation.GenerateImage(request, timeout=3.0)
        await until(lambda: running.server.batcher.running_count == 1)
        with pytest.raises(AioRpcError) as raised:
            async for _ in call:
                pass
        assert raised.value.code() is StatusCode.DEADLINE_EXCEEDED
        await until(lambda: running.server.grpc.in_flight == 0)
        model.permit(1)
        await until(lambda: running.server.batcher.running_count == 0)
        assert len(model.calls) == 1
        model.open()


async def test_draining_lets_running_requests_finish_and_refuses_new_ones() -> None:
    model = GatedModel()
    async with serving(model) as running:
        call = running.generation.GenerateImage(Request(prompt="a dog"))
        await until(lambda: running.server.batcher.running_count == 1)
        draining = asyncio.create_task(running.server.grpc.drain(60))
        await asyncio.sleep(0)
        with pytest.raises(AioRpcError) as raised:
            await running.generation.GenerateImage(Request(prompt="a dog")).read()
        assert raised.value.code() is StatusCode.UNAVAILABLE
        model.open()
        assert pictures([response async for response in call])
        await draining


async def test_200_streams_with_a_third_cancelled_leave_no_row_task_thread_or_channel() -> None:
    draw = random.Random(0)
    async with serving(AnalyticModel(), max_batch_rows=8) as running:
        await _one(running, draw, cancel=False)
        tasks, threads = len(asyncio.all_tasks()), threading.active_count()
        objects = _request_objects()
        endings = await asyncio.gather(
            *(_one(running, draw, cancel=index % 3 == 0) for index in range(200))
        )
        await until(lambda: running.server.grpc.in_flight == 0)
        await until(lambda: running.server.batcher.running_count == 0)
        assert running.server.batcher.waiting_count == 0
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        # The encoder's pool may grow to its two threads.
        assert threading.active_count() <= threads + 1
        gc.collect()
        assert _request_objects() <= objects
    assert endings.count(StatusCode.OK) >= 133
    assert StatusCode.CANCELLED in endings


def _request_objects() -> int:
    gc.collect()
    return sum(type(thing) in (Row, Job, EventChannel) for thing in gc.get_objects())


async def _one(running: Running, draw: random.Random, *, cancel: bool) -> StatusCode:
    request = Request(prompt="a dog", step_count=draw.randint(1, 10), sample_count=2)
    call = running.generation.GenerateImage(request)
    responses = []
    reads = draw.randint(0, 6)
    try:
        while (response := await call.read()) is not grpc.aio.EOF:
            responses.append(response)
            if cancel and len(responses) > reads:
                call.cancel()
    except asyncio.CancelledError:
        pass
    code = await call.code()
    if code is StatusCode.OK:
        assert len(pictures(responses)) == 2
    return code
