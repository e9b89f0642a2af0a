"""Webhooks: signed, delivered again after failures and restarts, and never to a private address."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from limner.v1 import training_pb2, training_pb2_grpc
from services.storage.database import open_engine
from services.trainer import webhook_client
from services.trainer.job import JobRequest
from services.trainer.metrics import TrainerMetrics
from services.trainer.server import open_trainer_server
from services.trainer.store import JobStore, new_job_id
from services.trainer.webhook_client import DeliveryError, WebhookClient, signature
from services.trainer.webhook_outbox import Delivery, WebhookOutbox
from services.trainer.webhooks import (
    AT_A_TIME,
    AT_A_TIME_OF_AN_ACCOUNT,
    MAX_ATTEMPTS,
    WebhookDeliverer,
)
from tests.trainer.service.harness import (
    ALICE,
    ToldBackend,
    create_request,
    serving,
    settings,
    upload,
)

SECRET = "a secret of 16 or more"
LOOPBACK = ("127.0.0.0/8",)


class Receiver:
    """An HTTP server that answers with `answers`, one after the other, then 200."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.bodies: list[tuple[dict[str, str], bytes]] = []
        self.arrived = threading.Semaphore(0)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status = receiver.answers.pop(0) if receiver.answers else 200
                self.send_response(status)
                if status == 302:
                    self.send_header("location", "http://169.254.169.254/")
                self.end_headers()
                receiver.bodies.append((headers, body))
                receiver.arrived.release()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook?job=1"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    async def next(self) -> tuple[dict[str, str], bytes]:
        assert await asyncio.to_thread(self.arrived.acquire, timeout=60)
        return self.bodies.pop(0)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


def _states(bodies: list[bytes]) -> list[str]:
    return [json.loads(body)["job"]["state"] for body in bodies]


async def test_every_change_of_state_arrives_signed(
    plain_model: Path, photos: Path, tmp_path: Path, receiver: Receiver
) -> None:
    backend = ToldBackend()
    configured = settings(plain_model, tmp_path, webhook_networks=LOOPBACK)
    async with serving(configured, backend) as stub:
        request = create_request(
            await upload(stub, photos), webhook_url=receiver.url, webhook_secret=SECRET
        )
        job = (await stub.CreateTrainingJob(request, metadata=ALICE)).job
        assert job.webhook_url == receiver.url
        assert SECRET not in str(job)
        headers, body = await receiver.next()
        moment, _, proof = headers["limner-signature"].partition(",")
        signed = moment.removeprefix("t=").encode() + b"." + body
        expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert proof == f"v1={expected}"
        told = json.loads(body)
        assert told["id"] == headers["limner-delivery"]
        assert told["type"] == "training_job.state_changed"
        assert told["job"] | {"step": 0, "step_count": 4} == told["job"]
        assert (told["job"]["id"], told["job"]["state"]) == (job.id, "running")
        run = await backend.runs.get()
        run.say(step=4)
        run.finish(0)
        _, body = await receiver.next()
        assert _states([body]) == ["succeeded"]
        assert json.loads(body)["job"]["model"] == f"tiny@{job.id}"


async def test_what_was_not_delivered_outlives_the_service(
    plain_model: Path, photos: Path, tmp_path: Path, receiver: Receiver
) -> None:
    receiver.answers = [500, 302, 500]
    configured = settings(plain_model, tmp_path, webhook_networks=LOOPBACK)
    async with serving(configured, ToldBackend()) as stub:
        request = create_request(
            await upload(stub, photos), webhook_url=receiver.url, webhook_secret=SECRET
        )
        await stub.CreateTrainingJob(request, metadata=ALICE)
        headers, _ = await receiver.next()
    first = headers["limner-delivery"]
    async with serving(configured, ToldBackend()):
        # `next` gives up after a while.
        while (await receiver.next())[0]["limner-delivery"] != first:
            pass


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:127.0.0.1]/",
        "http://10.1.2.3/",
        "http://0.0.0.0/",
        "ftp://example.com/",
        "http://user:password@example.com/",
        "no url",
        "http://" + "a" * 2048,
        "http://no..name/",
        "http://" + "a" * 64 + ".example/",
    ],
)
async def test_a_private_address_is_refused_with_the_request(
    plain_model: Path, photos: Path, tmp_path: Path, url: str
) -> None:
    async with serving(settings(plain_model, tmp_path), ToldBackend()) as stub:
        request = create_request(await upload(stub, photos), webhook_url=url)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.CreateTrainingJob(request, metadata=ALICE)
    told = refused.value.details() or ""
    assert "webhook_url" in told
    assert "webhook_secret" in told


def test_a_name_that_means_a_private_address_is_not_called(receiver: Receiver) -> None:
    port = receiver.url.partition("/hook")[0].rpartition(":")[2]
    with pytest.raises(DeliveryError, match="may not be called"):
        WebhookClient().post(
            f"http://localhost:{port}/",
            b"{}",
            secret=SECRET,
            delivery_id="1",
        )
    assert not receiver.bodies


def test_the_signature_is_what_the_contract_says() -> None:
    digest = hmac.new(b"k", b"5.{}", hashlib.sha256).hexdigest()
    assert signature("k", b"{}", 5) == f"t=5,v1={digest}"


def test_a_receiver_that_drips_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = threading.Event()

    def drip() -> None:
        connected, _ = listening.accept()
        with connected:
            while not given_up.wait(0.05):
                connected.send(b"H")

    monkeypatch.setattr(webhook_client, "_EXCHANGE_TIMEOUT_S", 0.3)
    client = WebhookClient([ipaddress.ip_network(LOOPBACK[0])])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            with pytest.raises(DeliveryError):
                client.post(url, b"{}", secret=SECRET, delivery_id="1")
        finally:
            given_up.set()
            dripping.join()


async def test_deliveries_go_on_after_an_error_without_words() -> None:
    class Outbox:
        def __init__(self) -> None:
            self.errors: list[Exception] = [TimeoutError()]

        async def next_due(self, **_: object) -> None:
            if self.errors:
                raise self.errors.pop()
            asked_again.set()

    asked_again = asyncio.Event()
    deliverer = WebhookDeliverer(
        Outbox(),  # type: ignore[arg-type]
        WebhookClient(),
        TrainerMetrics(CollectorRegistry()),
    )
    running = asyncio.create_task(deliverer.run())
    waiting = asyncio.create_task(asked_again.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    assert asked_again.is_set()
    running.cancel()


async def test_it_is_given_up_after_the_last_attempt() -> None:
    class Outbox:
        def __init__(self) -> None:
            self.delays: list[float] = []
            self.waiting = [
                Delivery(
                    id="1",
                    job_id="j",
                    account="alice",
                    url="",
                    secret=SECRET,
                    body="{}",
                    attempt_count=0,
                )
            ]

        async def next_due(self, *, but_of_jobs: list[str], **_: object) -> Delivery | None:
            return self.waiting[0] if self.waiting and not but_of_jobs else None

        async def drop(self, delivery: Delivery) -> None:
            self.waiting.clear()
            done.set()

        async def postpone(self, delivery: Delivery, delay_s: float) -> None:
            self.delays.append(delay_s)
            self.waiting = [replace(delivery, attempt_count=delivery.attempt_count + 1)]

    done, outbox = asyncio.Event(), Outbox()
    deliverer = WebhookDeliverer(
        outbox,  # type: ignore[arg-type]
        WebhookClient(),
        TrainerMetrics(CollectorRegistry()),
    )
    running = asyncio.create_task(deliverer.run())
    await done.wait()
    running.cancel()
    assert len(outbox.delays) == MAX_ATTEMPTS - 1
    assert outbox.delays[0] < 3
    assert max(outbox.delays) <= 3 * 3600 * 1.25


@asynccontextmanager
async def _delivering(
    database_url: str, *, first_delay_s: float = 60.0
) -> AsyncIterator[tuple[JobStore, WebhookOutbox]]:
    """Jobs whose changes are delivered for the length of a block, and what was not yet."""
    engine = open_engine(database_url)
    store, outbox = JobStore(engine), WebhookOutbox(engine)
    await store.migrate()
    client = WebhookClient([ipaddress.ip_network(LOOPBACK[0])])
    metrics = TrainerMetrics(CollectorRegistry())
    deliverer = WebhookDeliverer(outbox, client, metrics, first_delay_s=first_delay_s)
    running = asyncio.create_task(deliverer.run())
    try:
        yield store, outbox
    finally:
        running.cancel()
        await asyncio.wait([running])
        await engine.dispose()


async def _start_job(store: JobStore, account: str, url: str) -> str:
    request = JobRequest(
        base_model="tiny",
        dataset_id="d",
        instance_prompt="a sks dog",
        class_prompt="",
        token="sks",
        method="lora",
        configuration_yaml="",
        webhook_url=url,
        webhook_secret=SECRET,
    )
    job_id = new_job_id()
    await store.create(account, job_id, request, {"output": "o"}, job_id)
    assert await store.move(job_id, 1, "running")
    return job_id


async def test_receivers_that_do_not_answer_delay_nobody_else(
    database_url: str, receiver: Receiver
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=2 * AT_A_TIME)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        async with _delivering(database_url) as (store, outbox):
            dead = [await _start_job(store, "mallory", url) for _ in range(2 * AT_A_TIME)]
            job_id = await _start_job(store, "alice", receiver.url)
            _, body = await receiver.next()
            assert json.loads(body)["job"]["id"] == job_id
            waits = await outbox.next_due(but_of_jobs=dead[:AT_A_TIME_OF_AN_ACCOUNT])
            assert waits is not None
            assert waits.account == "mallory"
            first = await outbox.next_due(but_of_accounts=["alice"])
            assert first is not None
            assert (first.job_id, first.attempt_count) == (dead[0], 0)  # it is under way still


async def test_changes_of_a_job_arrive_in_their_order_whatever_fails(
    database_url: str, receiver: Receiver
) -> None:
    receiver.answers = [500, 500, 500]
    async with _delivering(database_url, first_delay_s=0.1) as (store, _):
        job_id = await _start_job(store, "alice", receiver.url)
        assert await store.move(job_id, 1, "failed")
        assert await store.resume(job_id, 1, "")
        bodies = [(await receiver.next())[1] for _ in range(6)]
    assert _states(bodies) == [*["running"] * 4, "failed", "queued"]


async def test_without_a_webhook_nothing_is_kept(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    backend = ToldBackend()
    configured = settings(plain_model, tmp_path)
    async with (
        open_trainer_server(configured, registry=CollectorRegistry(), backend=backend) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        job = (
            await stub.CreateTrainingJob(create_request(await upload(stub, photos)), metadata=ALICE)
        ).job
        await backend.runs.get()
        engine = open_engine(configured.jobs_url())
        assert await WebhookOutbox(engine).next_due() is None
        await engine.dispose()
        assert job.state == training_pb2.TrainingJob.STATE_QUEUED
