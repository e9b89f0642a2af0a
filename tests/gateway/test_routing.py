import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from limner.v1 import model_pb2, model_pb2_grpc
from limner.v1.generation_pb2 import GenerateImageRequest
from services.gateway.backend import LinkOptions
from services.gateway.pool import BackendPool
from tests.gateway.fake_backend import backend
from tests.gateway.harness import failure, reason, running_gateway, serving_count, until

PATH = "/limner.v1.GenerationService/GenerateImage"


async def list_models(door):
    stub = model_pb2_grpc.ModelServiceStub(door.channel)
    answer = await stub.ListModels(model_pb2.ListModelsRequest(), metadata=door.authorization)
    return [(model.name, model.revision) for model in answer.models]


async def drawn(call):
    events = [event async for event in call]
    return events[0].accepted.model


async def test_a_request_goes_to_the_backend_that_has_the_model(tmp_path):
    async with (
        backend(models=["dots"]) as dots,
        backend(models=["lines", "both"]) as lines,
        running_gateway(tmp_path, dots, lines) as door,
    ):
        for model in ("dots", "lines", "lines", "both"):
            assert await drawn(door.generate(model=model)) == model
    assert [seen.request.model for seen in dots.calls] == ["dots"]
    assert [seen.request.model for seen in lines.calls] == ["lines", "lines", "both"]


async def test_an_unknown_model_is_not_found_and_the_answer_names_what_exists(tmp_path):
    async with (
        backend(models=["dots"]) as dots,
        backend(models=["lines"]) as lines,
        running_gateway(tmp_path, dots, lines) as door,
    ):
        error = await failure(door.generate(model="circles"))
        assert not door.admission.leases
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert reason(error) == "MODEL_NOT_FOUND"
    assert "dots, lines" in error.details()


async def test_a_model_whose_backends_are_away_is_unavailable_at_once(tmp_path):
    async with backend(models=["lines"]) as other, AsyncExitStack() as stack:
        fake = await stack.enter_async_context(backend(models=["dots"]))
        door = await stack.enter_async_context(running_gateway(tmp_path, fake, other))
        fake.server.set_serving(False)
        await until(lambda: serving_count(door.gateway) == 1)
        error = await failure(door.generate(model="dots"))
        assert await list_models(door) == [("lines", "r1")]
        fake.server.set_serving(True)
        await until(lambda: serving_count(door.gateway) == 2)
        assert await drawn(door.generate(model="dots")) == "dots"
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert reason(error) == "NO_BACKEND"
    assert "'dots'" in error.details()


async def test_before_any_backend_was_reached_the_gateway_is_not_ready(tmp_path):
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False) as door:
        error = await failure(door.generate(model="dots"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await list_models(door)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert reason(error) == reason(raised.value) == "NOT_READY"


async def test_no_name_means_the_only_model(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        assert await drawn(door.generate()) == "dots"


async def test_no_name_means_the_default_model_where_there_are_several(tmp_path):
    async with (
        backend(models=["dots", "lines"]) as fake,
        running_gateway(tmp_path, fake, default_model="lines") as door,
    ):
        assert await drawn(door.generate()) == "lines"


async def test_no_name_among_several_models_is_an_invalid_argument(tmp_path):
    async with (
        backend(models=["dots", "lines"]) as fake,
        running_gateway(tmp_path, fake) as door,
    ):
        error = await failure(door.generate())
    violations = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[1].Unpack(violations)
    assert [(v.field, v.reason) for v in violations.field_violations] == [("model", "REQUIRED")]
    assert "dots, lines" in error.details()


async def test_the_least_busy_backend_is_chosen(tmp_path):
    async with AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(backend()) for _ in range(3)]
        door = await stack.enter_async_context(running_gateway(tmp_path, *fakes))
        calls = {}

        async def hang(request_id):
            calls[request_id] = door.generate("hang", metadata=[("x-request-id", request_id)])
            await anext(aiter(calls[request_id]))

        for count in range(1, 10):
            await hang(f"r{count}")
            running = [fake.running_count for fake in fakes]
            assert (max(running) - min(running) <= 1, sum(running)) == (True, count)
        for seen in fakes[1].calls:
            calls[seen.context.request_id].cancel()
        await until(lambda: door.metric("gateway_inflight") == 6)
        for count in range(3):
            await hang(f"later{count}")
        assert [fake.running_count for fake in fakes] == [3, 3, 3]
        for call in calls.values():
            call.cancel()
        await until(lambda: door.metric("gateway_inflight") == 0)


async def test_equally_busy_backends_take_turns(tmp_path):
    async with AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(backend()) for _ in range(3)]
        door = await stack.enter_async_context(running_gateway(tmp_path, *fakes))
        for _ in range(6):
            await drawn(door.generate())
        assert [len(fake.calls) for fake in fakes] == [2, 2, 2]


async def test_a_backend_that_drains_is_replaced_before_the_first_event(tmp_path):
    async with backend() as one, backend() as other, running_gateway(tmp_path, one, other) as door:
        one.draining = True
        for _ in range(4):
            assert await drawn(door.generate()) == "dots"
        assert one.calls
        assert [seen.outcome for seen in other.calls] == ["done"] * 4
        await until(lambda: door.admission.closings == [["settle"]] * 4)


async def test_a_request_is_tried_twice_at_most(tmp_path):
    async with AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(backend(draining=True)) for _ in range(3)]
        door = await stack.enter_async_context(running_gateway(tmp_path, *fakes))
        error = await failure(door.generate())
        assert sum(len(fake.calls) for fake in fakes) == 2
        await until(lambda: door.admission.closings == [["refund"]])
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert reason(error) == "SHUTTING_DOWN"


async def test_without_another_backend_the_first_answer_stands(tmp_path):
    async with backend(draining=True) as fake, running_gateway(tmp_path, fake) as door:
        error = await failure(door.generate())
    assert reason(error) == "SHUTTING_DOWN"
    assert len(fake.calls) == 1


async def test_models_are_the_union_sorted_with_the_prevailing_revision(tmp_path, caplog):
    async with AsyncExitStack() as stack:
        fakes = [
            await stack.enter_async_context(backend(models=models, revision=revision))
            for models, revision in ((["b", "a"], "new"), (["b", "c"], "old"), (["b"], "old"))
        ]
        door = await stack.enter_async_context(running_gateway(tmp_path, *fakes))
        assert await list_models(door) == [("a", "new"), ("b", "old"), ("c", "old")]
        fakes[2].server.set_serving(False)
        await until(lambda: serving_count(door.gateway) == 2)
        assert await list_models(door) == [("a", "new"), ("b", "new"), ("c", "old")]
    conflicts = [r for r in caplog.records if r.getMessage().startswith("backends differ")]
    assert [(r.model, r.revisions) for r in conflicts] == [("b", ["new", "old"])]


async def test_models_are_listed_anew_from_time_to_time(tmp_path):
    options = LinkOptions(models_refresh_s=0.05)
    async with backend() as fake, running_gateway(tmp_path, fake, options=options) as door:
        fake.models = ("dots", "new")

        async def are_listed():
            return await list_models(door) == [("dots", "r1"), ("new", "r1")]

        await until(are_listed)


async def test_a_backend_that_comes_back_is_used_again(tmp_path):
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(backend())
        door = await stack.enter_async_context(running_gateway(tmp_path, fake))
        await fake.stop()
        await until(lambda: serving_count(door.gateway) == 0)
        assert reason(await failure(door.generate())) == "NO_BACKEND"
        await fake.start(fake.port)
        await until(lambda: serving_count(door.gateway) == 1)
        assert await drawn(door.generate()) == "dots"


async def test_the_health_of_the_services_follows_the_backends(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        health = health_pb2_grpc.HealthStub(door.channel)

        async def are(*expected):
            services = ("", "AccountService", "GenerationService", "ModelService")
            names = [name and f"limner.v1.{name}" for name in services]
            answers = [
                await health.Check(health_pb2.HealthCheckRequest(service=name)) for name in names
            ]
            serving = health_pb2.HealthCheckResponse.SERVING
            return [answer.status == serving for answer in answers] == list(expected)

        assert await are(True, True, True, True)
        fake.server.set_serving(False)
        await until(lambda: are(True, True, False, False))
        fake.server.set_serving(True)
        await until(lambda: are(True, True, True, True))


async def test_a_dns_name_stands_for_its_addresses(tmp_path):
    async with backend() as fake:
        target = f"dns:///localhost:{fake.port}"
        async with running_gateway(tmp_path, target, wait=False) as door:
            await until(lambda: serving_count(door.gateway) == 1)
            assert await drawn(door.generate()) == "dots"
            assert f"127.0.0.1:{fake.port}" in {b.address for b in door.gateway.pool.backends}


async def test_an_address_that_leaves_a_name_lets_its_streams_end():
    async with backend() as one, backend() as other:
        addresses = {one.address, other.address}

        async def resolve(name):
            assert name == "pods:50061"
            return set(addresses)

        pool = BackendPool(["dns:///pods:50061"], resolve=resolve, resolve_interval_s=0.02)
        running = asyncio.create_task(pool.run())
        await until(lambda: sum(b.serving for b in pool.backends) == 2)
        leaving = next(b for b in pool.backends if b.address == one.address)
        leaving.occupy()
        request = GenerateImageRequest(prompt="step by step")
        events = aiter(leaving.stream(PATH)(request.SerializeToString()))
        await anext(events)
        addresses.discard(one.address)
        await until(lambda: [b.address for b in pool.backends] == [other.address])
        one.more.set()
        assert [event async for event in events]
        leaving.release()
        addresses.clear()  # a name server that knows nothing takes no backend away
        await asyncio.sleep(0.1)
        assert [b.address for b in pool.backends] == [other.address]
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not pool.backends
