from datetime import timedelta

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest
from sqlalchemy import text

from limner.v1 import (
    account_pb2,
    account_pb2_grpc,
    admin_pb2,
    admin_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from services.gateway.key_format import make_key
from services.gateway.key_store import KeyStore
from services.storage.database import open_engine
from tests.gateway.actors import ACTOR
from tests.gateway.fake_backend import backend
from tests.gateway.harness import PEPPER, failure, reason, running_gateway, until


async def refusal(door, *metadata):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await account(door, *metadata)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    return reason(raised.value)


async def account(door, *metadata):
    stub = account_pb2_grpc.AccountServiceStub(door.channel)
    return await stub.GetAccount(account_pb2.GetAccountRequest(), metadata=metadata)


def bearer(key):
    return ("authorization", f"Bearer {key}")


async def test_each_kind_of_bad_key_has_its_reason(tmp_path):
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False) as door:
        assert await refusal(door) == "KEY_MISSING"
        assert await refusal(door, ("x-api-key", door.key)) == "KEY_MISSING"
        assert await refusal(door, ("authorization", f"Basic {door.key}")) == "KEY_MALFORMED"
        assert await refusal(door, ("authorization", door.key)) == "KEY_MALFORMED"
        assert await refusal(door, bearer("")) == "KEY_MALFORMED"
        assert await refusal(door, bearer(door.key[:-1])) == "KEY_MALFORMED"
        assert await refusal(door, bearer(door.key), bearer(door.key)) == "KEY_MALFORMED"
        assert await refusal(door, bearer(make_key().text)) == "KEY_UNKNOWN"
        rejected = door.metric("gateway_admissions_total", tier="", service="", decision="auth")
        assert rejected == 8


async def test_revoked_and_expired_keys_are_refused(tmp_path):
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False) as door:
        await account(door, bearer(door.key))
        stub = admin_pb2_grpc.AdminServiceStub(door.channel)
        request = admin_pb2.RevokeKeyRequest(key_id=door.key_id)
        await stub.RevokeKey(request, metadata=door.authorization)
        assert await refusal(door, bearer(door.key)) == "KEY_REVOKED"
        key, _ = await door.store.create_key(
            account="acme",
            name="brief",
            pepper=PEPPER.encode(),
            actor=ACTOR,
            lifetime=timedelta(seconds=-1),
        )
        assert await refusal(door, bearer(key.text)) == "KEY_EXPIRED"


async def test_the_keys_of_a_suspended_account_are_refused_until_it_is_resumed(tmp_path):
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False) as door:
        stub = admin_pb2_grpc.AdminServiceStub(door.channel)
        key, _ = await door.store.create_key(
            account="other",
            name="n",
            pepper=PEPPER.encode(),
            actor=ACTOR,
            new_account_tier="free",
        )
        other = bearer(key.text)
        assert (await account(door, other)).account == "other"
        request = admin_pb2.SuspendAccountRequest(account="other")
        await stub.SuspendAccount(request, metadata=door.authorization)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await account(door, other)
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert reason(raised.value) == "ACCOUNT_SUSPENDED"
        request = admin_pb2.ResumeAccountRequest(account="other")
        await stub.ResumeAccount(request, metadata=door.authorization)
        assert (await account(door, other)).account == "other"


async def test_a_use_of_a_key_is_written_down(tmp_path):
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False) as door:
        await account(door, bearer(door.key))
        assert (await door.store.list_keys())[0].last_used_at is None
        engine_url = door.store.engine.url
    engine = open_engine(engine_url.render_as_string(hide_password=False))
    record = (await KeyStore(engine=engine).list_keys())[0]
    await engine.dispose()
    assert record.last_used_at > record.created


async def test_every_service_asks_for_the_key_and_health_does_not(tmp_path):
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        raw = door.channel.unary_stream("/limner.v1.GenerationService/GenerateImage")
        assert reason(await failure(raw(b""))) == "KEY_MISSING"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await model_pb2_grpc.ModelServiceStub(door.channel).ListModels(
                model_pb2.ListModelsRequest()
            )
        assert reason(raised.value) == "KEY_MISSING"
        health = health_pb2_grpc.HealthStub(door.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert not fake.calls
        assert not door.admission.leases


async def test_the_account_service_tells_account_and_key(tmp_path):
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False) as door:
        # The scheme's name is not case-sensitive (RFC 9110, 11.1).
        answer = await account(door, ("authorization", f"bearer {door.key}"))
        record = (await door.store.list_keys())[0]
    assert (answer.account, answer.key_id) == ("acme", door.key_id)
    assert (answer.tier, len(answer.scopes)) == ("unlimited", 4)
    assert answer.key_create_time.ToMicroseconds() == int(record.created.timestamp() * 1e6 + 0.5)


async def test_a_database_that_fails_is_unavailable_not_a_wrong_key(tmp_path):
    async with running_gateway(tmp_path, "127.0.0.1:1", wait=False) as door:
        async with door.store.engine.begin() as connection:
            await connection.execute(text("ALTER TABLE keys RENAME TO hidden"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await account(door, bearer(door.key))
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "keys" in raised.value.details()
        assert "SELECT" not in raised.value.details()
        assert door.metric("gateway_store_errors_total") == 1
        async with door.store.engine.begin() as connection:
            await connection.execute(text("ALTER TABLE hidden RENAME TO keys"))
        assert (await account(door, bearer(door.key))).account == "acme"


async def test_no_secret_is_in_a_log_line_an_error_or_a_metric(tmp_path, caplog):
    caplog.set_level("DEBUG")
    prompt = "picture"
    async with backend() as fake, running_gateway(tmp_path, fake) as door:
        typo, unknown = door.key[:-1] + "!", make_key().text
        said = []
        for key in (typo, unknown, door.key):
            call = door.channel.unary_stream("/limner.v1.GenerationService/GenerateImage")(
                b"\xff", metadata=[bearer(key)]
            )
            error = await failure(call)
            said.append(f"{error.details()} {error.trailing_metadata()}")
        _ = [event async for event in door.generate(prompt)]
        await door.store.revoke_key(door.key_id, actor=ACTOR)

        async def is_revoked():
            try:
                await account(door, bearer(door.key))
            except grpc.aio.AioRpcError as error:
                return reason(error) == "KEY_REVOKED"
            return False

        await until(is_revoked)
        said.append(str((await failure(door.generate(prompt))).trailing_metadata()))
        await until(lambda: door.gateway.server.in_flight == 0)
        said.append(exposition(door.registry))
    lines = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    assert any("KEY_REVOKED" in each for each in said)
    assert any("acme" in line for line in lines)  # the access log was there to be read
    for secret in (door.key, typo, unknown, PEPPER, door.key.split("_")[3]):
        assert not [line for line in lines + said if secret in line]


def exposition(registry):
    return generate_latest(registry).decode()
