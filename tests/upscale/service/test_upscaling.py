"""UpscaleImage through a real server and a real channel."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_status import rpc_status
from PIL import Image, ImageCms

from limner.v1 import artifact_pb2, model_pb2
from tests.upscale.doubles import NearestUpscaler, noise, repeated
from tests.upscale.service.harness import (
    GatedUpscaler,
    Request,
    kinds,
    opened,
    picture,
    png,
    serving,
    until,
)


async def _violations(error: AioRpcError) -> dict[str, str]:
    """Reason by field."""
    assert error.code() is StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(error)
    assert status is not None
    for packed in status.details:
        bad = error_details_pb2.BadRequest()
        if packed.Unpack(bad):
            return {each.field: each.reason for each in bad.field_violations}
    raise AssertionError(f"no BadRequest in {status}")


async def test_a_stream_opens_with_every_resolved_value_and_ends_with_the_picture(
    tmp_path: Path,
) -> None:
    pixels = noise(60, 100)
    async with serving(tmp_path) as running:
        call = running.upscale.UpscaleImage(
            Request(image=png(pixels)), metadata=(("x-request-id", "my-id"),)
        )
        responses = [response async for response in call]
    accepted = responses[0].accepted
    assert accepted.request_id == "my-id"
    assert (accepted.model, accepted.model_revision) == ("nearest", "0123456789abcdef")
    assert (accepted.source_width, accepted.source_height) == (100, 60)
    assert (accepted.width, accepted.height, accepted.scale) == (400, 240, 4.0)
    assert accepted.output_format == artifact_pb2.IMAGE_FORMAT_PNG
    assert not accepted.HasField("denoise_strength")
    assert accepted.tile_count > 1
    assert set(kinds(responses)[1:]) == {"progress", "artifact"}
    last = responses[-1].artifact
    assert last.last
    info = next(r.artifact.info for r in responses if r.HasField("artifact"))
    assert info.size_bytes == len(picture(responses))
    assert not info.HasField("seed")
    done = [r.progress for r in responses if r.HasField("progress")][-1]
    assert done.completed_tile_count == done.total_tile_count == accepted.tile_count
    assert np.array_equal(np.asarray(opened(picture(responses))), repeated(pixels, 4))


@pytest.mark.parametrize("channel_count", [1, 2, 3, 4])
async def test_gray_stays_gray_and_alpha_is_enlarged(tmp_path: Path, channel_count: int) -> None:
    pixels = noise(20, 30, channel_count).clip(1)
    async with serving(tmp_path) as running:
        call = running.upscale.UpscaleImage(Request(image=png(pixels)))
        image = opened(picture([response async for response in call]))
    assert image.mode == ("L", "LA", "RGB", "RGBA")[channel_count - 1]
    assert np.array_equal(np.asarray(image).reshape(80, 120, -1), repeated(pixels, 4))


async def test_orientation_and_profile_are_honoured(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = noise(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    async with serving(tmp_path) as running:
        data = png(pixels, exif=exif, icc_profile=profile)
        responses = [r async for r in running.upscale.UpscaleImage(Request(image=data))]
    assert (responses[0].accepted.source_width, responses[0].accepted.width) == (20, 80)
    image = opened(picture(responses))
    assert np.array_equal(np.asarray(image), repeated(np.rot90(pixels, -1), 4))
    assert image.info["icc_profile"] == profile
    assert b"a camera" not in picture(responses)


async def test_remarks_come_with_the_acceptance(tmp_path: Path) -> None:
    wide = io.BytesIO()
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(wide, "PNG")
    requests = {
        "REDUCED_TO_8_BITS": Request(image=wide.getvalue()),
        "ALPHA_FLATTENED": Request(
            image=png(noise(8, 8, 4)), output_format=artifact_pb2.IMAGE_FORMAT_JPEG
        ),
    }
    async with serving(tmp_path) as running:
        for code, request in requests.items():
            call = running.upscale.UpscaleImage(request)
            accepted = (await call.read()).accepted
            assert [notice.code for notice in accepted.notices] == [code]
            assert accepted.notices[0].message


@pytest.mark.parametrize("scale", [2.0, 2.5, 3.999])
async def test_a_scale_between_gives_that_size(tmp_path: Path, scale: float) -> None:
    async with serving(tmp_path) as running:
        request = Request(image=png(noise(40, 33)), scale=scale)
        responses = [r async for r in running.upscale.UpscaleImage(request)]
    assert opened(picture(responses)).size == (round(33 * scale), round(40 * scale))
    assert responses[0].accepted.scale == scale


async def test_all_violations_are_listed_at_once_before_any_device_work(tmp_path: Path) -> None:
    model = NearestUpscaler()
    truncated = png(noise(64, 64))[:6000]
    async with serving(tmp_path, model, max_output_megapixels=0.1) as running:

        async def refused(**fields: object) -> dict[str, str]:
            with pytest.raises(AioRpcError) as raised:
                await running.upscale.UpscaleImage(Request(**fields)).read()
            return await _violations(raised.value)

        assert await refused(
            image=b"GIF89a", scale=9.0, output_format=77, denoise_strength=0.5
        ) == {
            "image": "NOT_AN_IMAGE",
            "scale": "OUT_OF_RANGE",
            "output_format": "UNSUPPORTED",
            "denoise_strength": "UNSUPPORTED",
        }
        assert await refused() == {"image": "REQUIRED"}
        assert await refused(image=truncated, scale=float("nan")) == {
            "image": "BROKEN",
            "scale": "NOT_FINITE",
        }
        assert await refused(image=png(noise(8, 8)), scale=1.9) == {"scale": "OUT_OF_RANGE"}
        # 400 × 400 would be too many pixels at scale 4, and 800 × 800 source ones at any.
        assert await refused(image=png(noise(100, 100))) == {"scale": "OUT_OF_RANGE"}
        assert await refused(image=png(noise(200, 200))) == {"image": "TOO_LARGE"}
        held = running.server.batcher.waiting_count
    assert model.calls == []
    assert held == 0


async def test_the_limit_is_told_with_the_largest_scale_that_fits(tmp_path: Path) -> None:
    async with serving(tmp_path, max_output_megapixels=0.1) as running:
        data = png(noise(100, 100))
        with pytest.raises(AioRpcError) as raised:
            await running.upscale.UpscaleImage(Request(image=data)).read()
        assert "at most 3.16" in (raised.value.details() or "")
        call = running.upscale.UpscaleImage(Request(image=data, scale=3.16))
        assert (await call.read()).accepted.width == 316


async def test_formats_limit_the_sides(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        request = Request(image=png(noise(1, 5000)), output_format=artifact_pb2.IMAGE_FORMAT_WEBP)
        with pytest.raises(AioRpcError) as raised:
            await running.upscale.UpscaleImage(request).read()
        assert await _violations(raised.value) == {"output_format": "TOO_LARGE"}


async def test_a_strength_is_rounded_to_tenths_and_the_models_own_is_the_default(
    tmp_path: Path,
) -> None:
    model = NearestUpscaler(default_denoise_strength=0.5)
    async with serving(tmp_path, model) as running:
        for sent, used in ((None, 0.5), (0.26, 0.3), (0.0, 0.0)):
            request = Request(image=png(noise(8, 8)), denoise_strength=sent)
            responses = [r async for r in running.upscale.UpscaleImage(request)]
            assert responses[0].accepted.denoise_strength == used
            assert model.strengths[-1] == used
        request = Request(image=png(noise(8, 8)), denoise_strength=1.5)
        with pytest.raises(AioRpcError) as raised:
            await running.upscale.UpscaleImage(request).read()
        assert await _violations(raised.value) == {"denoise_strength": "OUT_OF_RANGE"}


async def test_models_are_listed_with_their_limits_and_the_first_is_the_default(
    tmp_path: Path,
) -> None:
    models = (NearestUpscaler("b"), NearestUpscaler("a", default_denoise_strength=0.5))
    async with serving(tmp_path, *models) as running:
        listed = await running.models.ListModels(model_pb2.ListModelsRequest())
        with pytest.raises(AioRpcError) as raised:
            await running.upscale.UpscaleImage(Request(model="c", image=png(noise(8, 8)))).read()
        call = running.upscale.UpscaleImage(Request(image=png(noise(8, 8))))
        assert (await call.read()).accepted.model == "b"
    assert [model.name for model in listed.models] == ["a", "b"]
    assert [model.is_default for model in listed.models] == [False, True]
    limits = listed.models[0].upscale_limits
    assert list(listed.models[0].tasks) == [model_pb2.TASK_UPSCALE]
    assert (limits.min_scale, limits.max_scale) == (2.0, 4.0)
    assert limits.max_output_pixel_count == 100_000_000
    assert limits.default_denoise_strength == 0.5
    assert not listed.models[1].upscale_limits.HasField("default_denoise_strength")
    assert raised.value.code() is StatusCode.NOT_FOUND
    assert "a, b" in (raised.value.details() or "")


async def test_cancelling_frees_the_device_within_one_batch(tmp_path: Path) -> None:
    model = GatedUpscaler()
    async with serving(tmp_path, model) as running:
        call = running.upscale.UpscaleImage(Request(image=png(noise(60, 400))))
        assert (await call.read()).HasField("accepted")
        await until(lambda: len(model.calls) == 0 and running.server.batcher.running_count == 1)
        call.cancel()
        await asyncio.sleep(0.05)
        model.open()
        await until(lambda: running.server.batcher.running_count == 0)
        assert len(model.calls) == 1
        request = Request(image=png(noise(8, 8)))
        assert picture([r async for r in running.upscale.UpscaleImage(request)])
        outcome = {"model": "nearest", "outcome": "cancelled"}
        assert running.metric("upscale_images_total", **outcome) == 1


async def test_a_full_queue_refuses_before_decoding_and_says_when_to_retry(
    tmp_path: Path,
) -> None:
    model = GatedUpscaler()
    async with serving(tmp_path, model, max_queued_requests=1) as running:
        first = running.upscale.UpscaleImage(Request(image=png(noise(60, 400))))
        await until(lambda: running.server.batcher.running_count == 1)
        second = running.upscale.UpscaleImage(Request(image=png(noise(8, 8))))
        await until(lambda: running.server.batcher.waiting_count == 1)
        with pytest.raises(AioRpcError) as raised:
            await running.upscale.UpscaleImage(Request(image=png(noise(8, 8)))).read()
        assert raised.value.code() is StatusCode.RESOURCE_EXHAUSTED
        model.open()
        for call in (first, second):
            assert picture([response async for response in call])


async def test_a_slow_reader_still_gets_the_whole_picture(tmp_path: Path) -> None:
    pixels = noise(200, 60)
    async with serving(tmp_path) as running:
        call = running.upscale.UpscaleImage(Request(image=png(pixels)))
        responses = []
        async for response in call:
            responses.append(response)
            await asyncio.sleep(0.01)
    assert np.array_equal(np.asarray(opened(picture(responses))), repeated(pixels, 4))


async def test_mixed_sizes_at_once_all_come_out_right(tmp_path: Path) -> None:
    model = NearestUpscaler(max_batch_pixels=4 * 64 * 64)
    pictures = [noise(10 + 17 * i, 90 - 7 * i, seed=i) for i in range(8)]
    async with serving(tmp_path, model) as running:

        async def upscaled(pixels: np.ndarray) -> np.ndarray:
            call = running.upscale.UpscaleImage(Request(image=png(pixels)))
            return np.asarray(opened(picture([response async for response in call])))

        results = await asyncio.gather(*map(upscaled, pictures))
    for pixels, result in zip(pictures, results, strict=True):
        assert np.array_equal(result, repeated(pixels, 4))


async def test_a_fault_of_the_model_is_internal_without_its_message(tmp_path: Path) -> None:
    model = NearestUpscaler()

    def fault(tiles: object) -> None:
        raise RuntimeError("secret path")

    model.fault = fault
    async with serving(tmp_path, model) as running:
        with pytest.raises(AioRpcError) as raised:
            _ = [r async for r in running.upscale.UpscaleImage(Request(image=png(noise(8, 8))))]
    assert raised.value.code() is StatusCode.INTERNAL
    assert "secret" not in (raised.value.details() or "")


async def test_a_request_of_a_small_queue_share_is_refused_while_a_larger_one_is_not(
    tmp_path: Path,
) -> None:
    model = GatedUpscaler()
    async with serving(tmp_path, model, max_queued_requests=4) as running:
        image = png(noise(60, 60))
        others = [running.upscale.UpscaleImage(Request(image=image)) for _ in range(3)]
        for call in others:  # one of them may have begun
            await call.read()

        async def ask(queue_share: str) -> str:
            metadata = [("x-limner-queue-share", queue_share)]
            call = running.upscale.UpscaleImage(Request(image=image), metadata=metadata)
            try:
                await call.read()
            except AioRpcError as error:
                return error.code().name
            call.cancel()
            return "OK"

        assert await ask("0.25") == "RESOURCE_EXHAUSTED"
        assert await ask("1.0") == "OK"
        model.open()
