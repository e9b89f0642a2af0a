"""`python -m services.gateway` as a process: settings, SIGTERM, exit codes, nothing secret said."""

import asyncio
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from limner.v1 import generation_pb2, generation_pb2_grpc
from services.gateway.key_store import KeyStore
from services.gateway.schema import migrate
from services.gateway.tiers import UNLIMITED_TIER
from services.storage.database import open_engine
from tests.gateway.fake_backend import backend
from tests.gateway.harness import ACTOR, PEPPER, failure, reason, until


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(tmp_path, **changes):
    inherited = {name: value for name, value in os.environ.items() if "LIMNER" not in name}
    return {
        **inherited,
        "PYTHONPATH": ".:proto/gen",
        "LIMNER_GATEWAY_ADDRESS": f"127.0.0.1:{free_port()}",
        "LIMNER_GATEWAY_METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
        "LIMNER_GATEWAY_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/data/gateway.db",
        "LIMNER_GATEWAY_KEY_PEPPER": PEPPER,
        "LIMNER_GATEWAY_BACKENDS": "127.0.0.1:1",
        **changes,
    }


@asynccontextmanager
async def gateway_process(variables):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.gateway",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=variables,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ended(process):
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode, (out + err).decode()


async def wait_until_serving(channel, service):
    request = health_pb2.HealthCheckRequest(service=service)
    async with asyncio.timeout(60):
        health = health_pb2_grpc.HealthStub(channel)
        async for answer in health.Watch(request, wait_for_ready=True):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return


async def make_key(variables):
    engine = open_engine(variables["LIMNER_GATEWAY_DATABASE_URL"])
    await migrate(engine)
    key, _ = await KeyStore(engine=engine).create_key(
        account="acme",
        name="n",
        pepper=PEPPER.encode(),
        actor=ACTOR,
        new_account_tier=UNLIMITED_TIER,
    )
    await engine.dispose()
    return key.text


async def test_sigterm_lets_streams_finish_refuses_new_ones_and_exits_with_0(tmp_path):
    async with backend() as fake:
        variables = environment(tmp_path, LIMNER_GATEWAY_BACKENDS=fake.address)
        key = await make_key(variables)
        async with (
            gateway_process(variables) as process,
            grpc.aio.insecure_channel(variables["LIMNER_GATEWAY_ADDRESS"]) as channel,
        ):
            await wait_until_serving(channel, "limner.v1.GenerationService")
            stub = generation_pb2_grpc.GenerationServiceStub(channel)

            def generate(prompt):
                return stub.GenerateImage(
                    generation_pb2.GenerateImageRequest(prompt=prompt),
                    metadata=[("authorization", f"Bearer {key}")],
                )

            running = generate("step by step")
            events = [await anext(aiter(running))]
            process.send_signal(signal.SIGTERM)

            async def is_refused():
                try:
                    _ = [event async for event in generate("picture")]
                except grpc.aio.AioRpcError as error:
                    return (error.code().name, reason(error)) == ("UNAVAILABLE", "SHUTTING_DOWN")
                return False

            await until(is_refused)
            fake.more.set()
            events += [event async for event in running]
            assert events[-1].artifact.last
            code, said = await ended(process)
    assert code == 0
    assert '"message": "stopped"' in said
    for secret in (key, PEPPER):
        assert secret not in said


async def test_streams_that_outlast_the_grace_end_as_unavailable_and_the_exit_code_is_0(tmp_path):
    async with backend() as fake:
        variables = environment(
            tmp_path, LIMNER_GATEWAY_BACKENDS=fake.address, LIMNER_GATEWAY_GRACE_S="0.2"
        )
        key = await make_key(variables)
        async with (
            gateway_process(variables) as process,
            grpc.aio.insecure_channel(variables["LIMNER_GATEWAY_ADDRESS"]) as channel,
        ):
            await wait_until_serving(channel, "limner.v1.GenerationService")
            call = generation_pb2_grpc.GenerationServiceStub(channel).GenerateImage(
                generation_pb2.GenerateImageRequest(prompt="hang"),
                metadata=[("authorization", f"Bearer {key}")],
            )
            await anext(aiter(call))
            process.send_signal(signal.SIGTERM)
            assert reason(await failure(call)) == "SHUTTING_DOWN"
            assert (await ended(process))[0] == 0
            await until(lambda: fake.calls[0].outcome == "cancelled")


async def test_all_bad_settings_are_told_at_once_and_no_secret_is(tmp_path):
    variables = environment(
        tmp_path,
        LIMNER_GATEWAY_ADDRESS="nowhere",
        LIMNER_GATEWAY_BACKENDS="127.0.0.1:0",
        LIMNER_GATEWAY_KEY_PEPPER="short-secret",
        LIMNER_GATEWAY_GRACE_S="soon",
    )
    async with gateway_process(variables) as process:
        code, said = await ended(process)
    assert code == 1
    for name in ("ADDRESS", "BACKENDS", "KEY_PEPPER", "GRACE_S"):
        assert f"LIMNER_GATEWAY_{name}" in said
    assert "short-secret" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "url", ["sqlite:///gateway.db", "nonsense", "sqlite+aiosqlite:////proc/no/such/folder/a.db"]
)
async def test_a_database_that_cannot_be_opened_is_one_clear_line(tmp_path, url):
    variables = environment(tmp_path, LIMNER_GATEWAY_DATABASE_URL=url)
    async with gateway_process(variables) as process:
        code, said = await ended(process)
    assert code == 1
    assert "the gateway cannot start" in said
    assert "Traceback" not in said


async def test_all_mistakes_of_a_tier_file_are_told_at_the_start(tmp_path):
    path = tmp_path / "tiers.yaml"
    path.write_text("tiers: {lab: {burst: none}}")
    async with gateway_process(
        environment(tmp_path, LIMNER_GATEWAY_TIERS_FILE=str(path))
    ) as process:
        code, said = await ended(process)
    assert code == 1
    assert "the gateway cannot start" in said
    assert "tiers.lab.burst: should be a valid integer" in said
    assert "tiers.lab.max_pixels: is required" in said
    assert "Traceback" not in said


async def test_a_certificate_that_cannot_be_used_is_one_clear_line(tmp_path):
    absent = str(tmp_path / "absent.pem")
    variables = environment(
        tmp_path, LIMNER_GATEWAY_TLS_CERTIFICATE=absent, LIMNER_GATEWAY_TLS_KEY=absent
    )
    async with gateway_process(variables) as process:
        code, said = await ended(process)
    assert code == 1
    assert f"{absent} cannot be read" in said
    assert "Traceback" not in said


async def test_an_address_in_use_is_one_clear_line(tmp_path):
    async with backend() as fake:
        variables = environment(tmp_path, LIMNER_GATEWAY_ADDRESS=fake.address)
        async with gateway_process(variables) as process:
            code, said = await ended(process)
    assert code == 1
    assert f"cannot listen on {fake.address}" in said
    assert "Traceback" not in said
