"""The gateway as a stock client sees it: default channel options, reflection, what it lacks."""

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from limner.v1 import training_pb2, training_pb2_grpc
from tests.gateway.fake_backend import backend
from tests.gateway.harness import running_gateway


async def test_a_6_mib_artifact_reaches_a_client_with_default_options(tmp_path):
    size_bytes = 6 * 2**20 + 1
    async with backend(artifact_bytes=size_bytes) as fake, running_gateway(tmp_path, fake) as door:
        events = [event.artifact async for event in door.generate() if event.HasField("artifact")]
    assert len(events) == 25
    assert sum(len(event.data) for event in events) == size_bytes
    assert events[0].info.size_bytes == size_bytes
    assert [event.last for event in events] == [False] * 24 + [True]


async def test_reflection_lists_what_is_served_and_nothing_else(tmp_path):
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False) as door:
        stub = reflection_pb2_grpc.ServerReflectionStub(door.channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        symbol = "limner.v1.GenerationService"
        described = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        answers = [answer async for answer in stub.ServerReflectionInfo(iter([asked, described]))]
    assert {service.name for service in answers[0].list_services_response.service} == {
        "limner.v1.AccountService",
        "limner.v1.AdminService",
        "limner.v1.GenerationService",
        "limner.v1.ModelService",
        "limner.v1.UpscaleService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert answers[1].file_descriptor_response.file_descriptor_proto


async def test_services_that_are_not_built_are_not_offered(tmp_path):
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False) as door:
        training = training_pb2_grpc.TrainingServiceStub(door.channel)
        with pytest.raises(grpc.aio.AioRpcError) as trained:
            await training.GetTrainingJob(
                training_pb2.GetTrainingJobRequest(), metadata=door.authorization
            )
    assert trained.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_calls_are_counted_by_method_and_code(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        _ = [event async for event in door.generate()]
        method = {"grpc_service": "limner.v1.GenerationService", "grpc_method": "GenerateImage"}
        method["grpc_type"] = "server_stream"
        assert door.metric("grpc_server_handled_total", grpc_code="OK", **method) == 1
