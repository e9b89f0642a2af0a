"""TLS with certificates made on the spot: reload, clients' certificates, the health port."""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from services.runtime.server import GrpcServer
from services.runtime.tls import ClientTls, ServerTls, ServerTlsSettings, TlsFileError
from tests.certificates import Authority, new_authority


@pytest.fixture
def authority(tmp_path: Path) -> Callable[[str], Authority]:
    return lambda name: new_authority(tmp_path / name)


@asynccontextmanager
async def serving(tls: ServerTls, **options: Any) -> AsyncIterator[tuple[GrpcServer, int]]:
    server = GrpcServer("127.0.0.1:0", (), grace_s=0, credentials=tls.credentials(), **options)
    port = await server.start()
    server.set_serving(True)
    try:
        yield server, port
    finally:
        await server.drain()


async def is_served(channel: grpc.aio.Channel) -> bool:
    """Whether a health check gets through; False when the handshake fails."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@asynccontextmanager
async def connected(port: int, tls: ClientTls) -> AsyncIterator[grpc.aio.Channel]:
    options = (
        ("grpc.ssl_target_name_override", "localhost"),
        ("grpc.use_local_subchannel_pool", 1),
    )
    channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", tls.credentials(), options)
    async with channel:
        yield channel


async def reaches(port: int, tls: ClientTls) -> bool:
    """Whether a new connection gets through."""
    async with connected(port, tls) as channel:
        return await is_served(channel)


async def test_who_trusts_the_authority_gets_through_and_who_does_not_does_not(
    authority: Callable[[str], Authority],
) -> None:
    ours, other = authority("ours"), authority("other")
    async with serving(ours.server()) as (_, port):
        assert await reaches(port, ClientTls(ca=ours.ca))
        assert not await reaches(port, ClientTls(ca=other.ca))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as plain:
            assert not await is_served(plain)


async def test_a_certificate_for_another_name_is_refused_by_the_client(
    authority: Callable[[str], Authority],
) -> None:
    ours = authority("ours")
    async with serving(ours.server("elsewhere.example")) as (_, port):
        assert not await reaches(port, ClientTls(ca=ours.ca))


async def test_a_renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on(
    authority: Callable[[str], Authority],
) -> None:
    first, second = authority("first"), authority("second")
    shown, renewed = first.server(), second.server()
    async with (
        serving(shown) as (_, port),
        connected(port, ClientTls(ca=first.ca)) as old,
    ):
        assert await is_served(old)
        shutil.copy(renewed.key, shown.key)
        shutil.copy(renewed.certificate, shown.certificate)
        assert await reaches(port, ClientTls(ca=second.ca))
        assert not await reaches(port, ClientTls(ca=first.ca))
        assert await is_served(old)


async def test_a_pair_that_is_half_replaced_or_broken_keeps_the_last_good_one(
    authority: Callable[[str], Authority], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    first, second = authority("first"), authority("second")
    shown, renewed = first.server(), second.server()
    trusting_first = ClientTls(ca=first.ca)
    async with serving(shown) as (_, port):
        shutil.copy(renewed.key, shown.key)
        for _ in range(2):
            assert await reaches(port, trusting_first)
        assert caplog.messages == ["certificate not reloaded, the last stays"]
        shown.certificate.write_text("no certificate")
        assert await reaches(port, trusting_first)
        shown.certificate.unlink()
        assert await reaches(port, trusting_first)
        shutil.copy(renewed.certificate, shown.certificate)
        assert await reaches(port, ClientTls(ca=second.ca))


async def test_only_clients_with_a_certificate_of_the_authority_get_through(
    authority: Callable[[str], Authority],
) -> None:
    ours, clients = authority("ours"), authority("clients")
    server = ours.server()
    mutual = ServerTls(certificate=server.certificate, key=server.key, client_ca=clients.ca)
    good, stranger = clients.client(), ours.client("stranger")
    async with serving(mutual) as (_, port):
        assert await reaches(
            port, ClientTls(ca=ours.ca, certificate=good.certificate, key=good.key)
        )
        assert not await reaches(
            port, ClientTls(ca=ours.ca, certificate=stranger.certificate, key=stranger.key)
        )
        assert not await reaches(port, ClientTls(ca=ours.ca))


async def test_the_health_port_answers_probes_in_plain_text_and_nothing_else(
    authority: Callable[[str], Authority],
) -> None:
    tls = authority("ours").server()
    async with serving(tls, health_address="127.0.0.1:0") as (server, port):
        assert server.health_port not in (0, port)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.health_port}") as plain:
            assert await is_served(plain)
            server.set_serving(False)
            assert not await is_served(plain)
            reflect = plain.stream_stream(
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
            )
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await anext(aiter(reflect(iter([b""]))))
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_health_port_in_use_is_an_error(
    authority: Callable[[str], Authority],
) -> None:
    tls = authority("ours").server()
    async with serving(tls, health_address="127.0.0.1:0") as (first, _):
        taken = f"127.0.0.1:{first.health_port}"
        second = GrpcServer("127.0.0.1:0", (), grace_s=0, health_address=taken)
        with pytest.raises(OSError, match=f"cannot listen on {taken}"):
            await second.start()
        await second.drain()


def test_files_that_cannot_be_used_are_an_error_that_names_them(
    authority: Callable[[str], Authority], tmp_path: Path
) -> None:
    first, second = authority("first").server(), authority("second").server()
    (tmp_path / "junk").write_bytes(b"\xff junk")
    for tls in (
        ServerTls(certificate=tmp_path / "absent", key=first.key),
        ServerTls(certificate=first.certificate, key=second.key),
        ServerTls(certificate=tmp_path / "junk", key=first.key),
        ServerTls(certificate=first.certificate, key=first.key, client_ca=tmp_path / "junk"),
    ):
        with pytest.raises(TlsFileError, match=str(tmp_path)):
            tls.credentials()
    with pytest.raises(TlsFileError, match="absent cannot be read"):
        ClientTls(ca=tmp_path / "absent").credentials()


class _Settings(ServerTlsSettings):
    model_config = SettingsConfigDict(env_prefix="LIMNER_TEST_")


def test_settings_are_whole_or_absent(authority: Callable[[str], Authority]) -> None:
    tls = authority("ours").server()
    assert _Settings().server_credentials() is None
    whole = _Settings(tls_certificate=tls.certificate, tls_key=tls.key)
    assert whole.server_credentials() is not None
    with pytest.raises(ValidationError, match=r"LIMNER_TEST_TLS_CERTIFICATE and .* go together"):
        _Settings(tls_certificate=tls.certificate)
    with pytest.raises(ValidationError, match="LIMNER_TEST_TLS_CLIENT_CA needs"):
        _Settings(tls_client_ca=tls.certificate)
