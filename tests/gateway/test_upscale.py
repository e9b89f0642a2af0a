"""UpscaleImage through the gateway and a real upscale server: priced by megapixel.

The network is in closed form; everything else is what runs in production.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import generate_latest

from limner.v1 import model_pb2, model_pb2_grpc, upscale_pb2_grpc
from services.gateway.backend import ServedModel
from services.gateway.configuration_file import FollowedFile
from services.gateway.pricing import DEFAULT_PRICES, read_prices
from services.gateway.relayed_method import Order
from services.gateway.tiers import BUILT_IN_TIERS
from services.gateway.upscale_method import UpscaleMethod
from tests.gateway.harness import Harness, running_gateway, until
from tests.gateway.unspoken import log_lines, spoken
from tests.upscale.doubles import NearestUpscaler, noise, repeated
from tests.upscale.service.harness import (
    GatedUpscaler,
    Request,
    Running,
    kinds,
    opened,
    picture,
    png,
    serving,
)


@asynccontextmanager
async def _door(
    tmp_path: Path, *models: NearestUpscaler, **settings: Any
) -> AsyncIterator[tuple[Harness, Running]]:
    folder = tmp_path / "models"
    folder.mkdir()
    async with (
        serving(folder, *models) as running,
        running_gateway(tmp_path, f"127.0.0.1:{running.server.port}", **settings) as door,
    ):
        yield door, running


def _upscale(door: Harness, **fields: Any) -> Any:
    stub = upscale_pb2_grpc.UpscaleServiceStub(door.channel)
    return stub.UpscaleImage(Request(**fields), metadata=door.authorization)


async def _read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


def _violations(error: grpc.aio.AioRpcError) -> dict[str, str]:
    status = rpc_status.from_call(error)
    assert status is not None
    for packed in status.details:
        bad = error_details_pb2.BadRequest()
        if packed.Unpack(bad):
            return {each.field: each.reason for each in bad.field_violations}
    raise AssertionError(f"no BadRequest in {status}")


async def test_a_picture_comes_through_and_is_charged_by_its_pixels(tmp_path: Path) -> None:
    pixels = noise(60, 100)
    async with _door(tmp_path) as (door, _):
        responses = [r async for r in _upscale(door, image=png(pixels), scale=4.0)]
        (lease,) = door.admission.leases
    assert kinds(responses)[0] == "accepted"
    assert np.array_equal(np.asarray(opened(picture(responses))), repeated(pixels, 4))
    price = DEFAULT_PRICES.price_upscale(model="nearest", output_pixels=240 * 400)
    assert lease.request.artifact_millicredits == price
    assert (lease.request.service, lease.request.model) == ("upscale", "nearest")
    assert lease.closings == ["settle"]


async def test_a_request_without_a_model_gets_the_servers_default(tmp_path: Path) -> None:
    models = (NearestUpscaler("b"), NearestUpscaler("a"))
    async with _door(tmp_path, *models) as (door, _):
        responses = [r async for r in _upscale(door, image=png(noise(8, 8)))]
        listed = await model_pb2_grpc.ModelServiceStub(door.channel).ListModels(
            model_pb2.ListModelsRequest(), metadata=door.authorization
        )
    assert responses[0].accepted.model == "b"
    assert [(model.name, model.is_default) for model in listed.models] == [
        ("a", False),
        ("b", True),
    ]


async def test_bad_input_is_listed_by_the_server_and_costs_nothing(tmp_path: Path) -> None:
    async with _door(tmp_path) as (door, running):
        for fields, expected in (
            (
                {"image": b"GIF89a", "scale": 9.0},
                {"image": "NOT_AN_IMAGE", "scale": "OUT_OF_RANGE"},
            ),
            ({}, {"image": "REQUIRED"}),
            ({"image": png(noise(64, 64))[:5000]}, {"image": "BROKEN"}),
            ({"image": png(noise(8, 8)), "scale": float("nan")}, {"scale": "NOT_FINITE"}),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await _upscale(door, **fields).read()
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert _violations(raised.value) == expected
        await until(lambda: door.admission.closings == [["refund"]] * 4)
        assert running.metric("upscale_tiles_total", model="nearest") is None


async def test_cancelling_in_the_middle_frees_the_device_and_refunds(tmp_path: Path) -> None:
    model = GatedUpscaler()
    async with _door(tmp_path, model) as (door, running):
        call = _upscale(door, image=png(noise(60, 400)))
        await call.read()
        await until(lambda: running.server.batcher.running_count == 1)
        call.cancel()
        await until(lambda: door.admission.closings == [["refund"]])
        await asyncio.sleep(0.05)
        model.open()
        await until(lambda: running.server.batcher.running_count == 0)
        assert len(model.calls) == 1


async def test_a_server_that_is_lost_in_the_middle_costs_nothing(tmp_path: Path) -> None:
    model = GatedUpscaler()
    async with _door(tmp_path, model) as (door, running):
        call = _upscale(door, image=png(noise(60, 400)))
        await call.read()
        await running.server.grpc.drain(0)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await _read_to_the_end(call)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        await until(lambda: door.admission.closings == [["refund"]])
        model.open()


def test_a_tier_limits_the_megapixels_of_an_artifact() -> None:
    tier = BUILT_IN_TIERS["free"]
    method = UpscaleMethod(FollowedFile("prices", None, read_prices))

    def find(name: str) -> Any:
        listing = model_pb2.Model(name="m", tasks=[model_pb2.TASK_UPSCALE])
        listing.upscale_limits.max_scale = 4.0
        return ServedModel.listed(listing)

    data = png(np.zeros((1000, 1001, 3), np.uint8))

    def take(**fields: Any) -> Order:
        payload = Request(image=data, **fields).SerializeToString()
        return method.take(method.read(payload), payload, find, tier)

    order = take()
    assert [(each.field, each.reason) for each in order.excesses] == [("scale", "TIER_LIMIT")]
    assert "16 megapixels" in order.excesses[0].description
    allowed = take(scale=3.0)
    assert allowed.excesses == ()
    expected = DEFAULT_PRICES.price_upscale(model="m", output_pixels=3000 * 3003)
    assert allowed.artifact_millicredits == expected
    assert Request.FromString(allowed.payload).model == "m"


async def test_neither_key_nor_picture_reaches_a_log_a_metric_or_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With and without a picture that can be used, refused here and behind."""
    caplog.set_level(logging.DEBUG)
    data = png(noise(60, 100))
    told = []
    async with _door(tmp_path) as (door, _):
        await _read_to_the_end(_upscale(door, image=data))
        for fields in (
            {"image": data, "scale": 99.0},
            {"image": data, "model": "no such model"},
            {"image": data[: len(data) // 2]},
            {"image": data[1:]},
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await _read_to_the_end(_upscale(door, **fields))
            told.append(f"{caught.value.details()} {caught.value.trailing_metadata()}")
        told.append(generate_latest(door.registry).decode())
        key = door.key
    logged = log_lines(caplog.records)
    assert len(logged) > 10
    for secret in (data, data[1:], data[100:]):
        assert spoken([*told, *logged], key=key, prompts=[], data=secret) == []
