"""TLS at the door, mutual TLS to the backends, plain text for probes only."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError

from limner.v1 import account_pb2, account_pb2_grpc
from services.gateway.backend import LinkOptions
from services.runtime.tls import ClientTls, TlsFileError
from tests.certificates import new_authority
from tests.gateway.fake_backend import backend
from tests.gateway.harness import running_gateway, settings


@pytest.fixture
def authority(tmp_path):
    return new_authority(tmp_path / "authority")


def backend_settings(tls):
    return {
        "backend_tls_ca": tls.ca,
        "backend_tls_certificate": tls.certificate,
        "backend_tls_key": tls.key,
    }


async def test_the_door_speaks_tls_and_probes_are_answered_in_plain_text(tmp_path, authority):
    tls = authority.server()
    async with running_gateway(
        tmp_path,
        "127.0.0.1:1",
        wait=False,
        tls_certificate=tls.certificate,
        tls_key=tls.key,
        health_address="127.0.0.1:0",
    ) as door:
        request = account_pb2.GetAccountRequest()
        credentials = ClientTls(ca=authority.ca).credentials()
        address = f"localhost:{door.gateway.port}"
        async with grpc.aio.secure_channel(address, credentials) as channel:
            stub = account_pb2_grpc.AccountServiceStub(channel)
            answer = await stub.GetAccount(request, metadata=door.authorization)
            assert answer.account == "acme"
        plain = account_pb2_grpc.AccountServiceStub(door.channel)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await plain.GetAccount(request, metadata=door.authorization)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        health_address = f"127.0.0.1:{door.gateway.server.health_port}"
        async with grpc.aio.insecure_channel(health_address) as probe:
            checked = await health_pb2_grpc.HealthStub(probe).Check(health_pb2.HealthCheckRequest())
            assert checked.status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await account_pb2_grpc.AccountServiceStub(probe).GetAccount(request)
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("target", ["localhost:{port}", "dns:///localhost:{port}"])
async def test_a_backend_that_asks_for_a_certificate_gets_the_gateways(tmp_path, authority, target):
    """Also where backends are found by name, and their addresses are in no certificate."""
    credentials = authority.server(client_ca=authority.ca).credentials()
    async with backend(credentials=credentials) as fake:
        target = target.format(port=fake.port)
        shown = backend_settings(authority.client())
        async with running_gateway(tmp_path, target, **shown) as door:
            events = [event async for event in door.generate()]
    assert events[-1].artifact.last


async def test_a_backend_of_another_authority_or_name_is_not_talked_to(tmp_path, authority):
    stranger = new_authority(tmp_path / "stranger")
    link = LinkOptions(tls=authority.client())

    async def check(fake, host):
        async with link.open_channel(fake.address, host) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return await stub.Check(health_pb2.HealthCheckRequest())

    async with (
        backend(credentials=authority.server().credentials()) as ours,
        backend(credentials=stranger.server().credentials()) as theirs,
    ):
        assert (await check(ours, "localhost")).status == health_pb2.HealthCheckResponse.SERVING
        for fake, host in ((theirs, "localhost"), (ours, "elsewhere")):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await check(fake, host)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_that_cannot_be_used_is_an_error_at_the_start(tmp_path, authority):
    tls = authority.server()
    with pytest.raises(TlsFileError, match="nowhere"):
        async with running_gateway(
            tmp_path,
            "127.0.0.1:1",
            wait=False,
            tls_certificate=tls.certificate,
            tls_key=tmp_path / "nowhere",
        ):
            pass


def test_settings_of_backend_tls_are_whole(tmp_path, authority):
    tls = authority.client()
    with pytest.raises(ValidationError, match="BACKEND_TLS_KEY go together"):
        settings(tmp_path, ["127.0.0.1:1"], backend_tls_ca=tls.ca, backend_tls_key=tls.key)
    with pytest.raises(ValidationError, match="needs LIMNER_GATEWAY_BACKEND_TLS_CA"):
        settings(
            tmp_path,
            ["127.0.0.1:1"],
            backend_tls_certificate=tls.certificate,
            backend_tls_key=tls.key,
        )
