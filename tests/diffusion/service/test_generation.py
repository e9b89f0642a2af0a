"""GenerateImage through a real server and a real channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_status import rpc_status
from torch import Tensor

from limner.v1 import artifact_pb2, generation_pb2
from services.diffusion.model import ImageLimits, UInt8Array
from tests.diffusion.batching.doubles import AnalyticModel
from tests.diffusion.service.harness import (
    GatedModel,
    Request,
    kinds,
    open_picture,
    pictures,
    serving,
    until,
)


def _details(error: AioRpcError, kind: type) -> object:
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        message = kind()
        if packed.Unpack(message):
            return message
    raise AssertionError(f"no {kind.__name__} in {status}")


async def test_a_stream_opens_with_every_resolved_value_and_ends_with_the_picture() -> None:
    async with serving(AnalyticModel()) as running:
        call = running.generation.GenerateImage(
            Request(prompt="a red apple"), metadata=(("x-request-id", "my-id"),)
        )
        responses = [response async for response in call]
    accepted = responses[0].accepted
    assert accepted.request_id == "my-id"
    assert accepted.model == "analytic"
    assert accepted.model_revision == "0123456789abcdef"
    assert (accepted.width, accepted.height, accepted.step_count) == (64, 64, 6)
    assert accepted.guidance_scale == 3.0
    assert accepted.sampler == generation_pb2.SAMPLER_DDIM
    assert accepted.sample_count == 1
    assert accepted.output_format == artifact_pb2.IMAGE_FORMAT_PNG
    assert kinds(responses)[0] == "accepted"
    assert set(kinds(responses)[1:]) == {"progress", "artifact"}
    last = responses[-1].artifact
    assert last.last
    assert last.info.seed == accepted.seed
    assert last.info.mime_type == "image/png"
    assert last.info.size_bytes == len(last.data)
    assert open_picture(last.data).size == (64, 64)


async def test_the_echoed_seed_draws_the_same_picture_again_and_absent_seeds_differ() -> None:
    async with serving(AnalyticModel()) as running:

        async def draw(**fields: object) -> tuple[int, bytes]:
            call = running.generation.GenerateImage(Request(prompt="a dog", **fields))
            responses = [response async for response in call]
            return responses[0].accepted.seed, pictures(responses)[0]

        seed, first = await draw()
        other_seed, other = await draw()
        _, again = await draw(seed=seed)
    assert seed != other_seed
    assert np.array_equal(open_picture(first), open_picture(again))
    assert not np.array_equal(open_picture(first), open_picture(other))


async def test_png_files_tell_how_they_were_made_but_not_the_prompt() -> None:
    async with serving(AnalyticModel()) as running:
        call = running.generation.GenerateImage(
            Request(prompt="my secret wish", negative_prompt="my fear", seed=7, sample_count=2)
        )
        data = pictures([response async for response in call])
    parameters = open_picture(data[1]).info["parameters"]
    assert parameters == (
        "Steps: 6, Sampler: DDIM, CFG scale: 3.0, Seed: 8, Size: 64x64, Model: analytic, "
        "Model hash: 0123456789abcdef"
    )
    assert b"secret" not in data[0]
    assert b"fear" not in data[0]


@pytest.mark.parametrize(
    ("output_format", "pillow_name", "mime_type"),
    [
        (artifact_pb2.IMAGE_FORMAT_JPEG, "JPEG", "image/jpeg"),
        (artifact_pb2.IMAGE_FORMAT_WEBP, "WEBP", "image/webp"),
    ],
)
async def test_the_picture_comes_in_the_format_that_was_asked_for(
    output_format: artifact_pb2.ImageFormat.ValueType, pillow_name: str, mime_type: str
) -> None:
    async with serving(AnalyticModel()) as running:
        request = Request(prompt="a dog", output_format=output_format)
        responses = [response async for response in running.generation.GenerateImage(request)]
    assert open_picture(pictures(responses)[0]).format == pillow_name
    assert responses[-1].artifact.info.mime_type == mime_type


class _LargeNoise(AnalyticModel):
    """Pictures that no codec makes smaller than 256 KiB."""

    limits = ImageLimits(
        min_side=32,
        max_side=512,
        side_multiple=8,
        max_pixel_count=512 * 512,
        min_step_count=1,
        max_step_count=100,
        min_guidance_scale=0.0,
        max_guidance_scale=20.0,
        max_sample_count=8,
        max_prompt_length=100,
    )

    def decode(self, latents_BChw: Tensor) -> UInt8Array:
        rows, _, height, width = latents_BChw.shape
        noise = np.random.default_rng(0)
        return noise.integers(0, 256, (rows, height * 8, width * 8, 3), dtype=np.uint8)


async def test_large_artifacts_come_in_chunks_that_never_interleave() -> None:
    async with serving(_LargeNoise()) as running:
        request = Request(prompt="noise", width=512, height=512, sample_count=2, step_count=1)
        call = running.generation.GenerateImage(request)
        chunks = [r.artifact async for r in call if r.HasField("artifact")]
    assert [chunk.index for chunk in chunks] == sorted(chunk.index for chunk in chunks)
    assert max(len(chunk.data) for chunk in chunks) == 256 * 1024
    for index in (0, 1):
        own = [chunk for chunk in chunks if chunk.index == index]
        assert len(own) >= 3
        assert [chunk.HasField("info") for chunk in own] == [True] + [False] * (len(own) - 1)
        assert [chunk.last for chunk in own] == [False] * (len(own) - 1) + [True]
        assert own[0].info.size_bytes == sum(len(chunk.data) for chunk in own)


async def test_previews_are_small_pngs_and_come_only_when_asked_for() -> None:
    model = GatedModel()
    async with serving(model) as running:
        request = Request(prompt="a dog", preview_interval=2)
        call = running.generation.GenerateImage(request)
        model.permit(2)
        while not (response := await call.read()).HasField("preview"):
            pass
        model.open()
        preview = response.preview
        assert (preview.index, preview.step, preview.mime_type) == (0, 2, "image/png")
        assert open_picture(preview.image).size == (32, 32)


async def test_remarks_about_a_prompt_come_with_the_acceptance() -> None:
    async with serving(AnalyticModel()) as running:
        call = running.generation.GenerateImage(Request(prompt="a xyzzy"))
        accepted = (await call.read()).accepted
    assert [(notice.code, notice.field) for notice in accepted.notices] == [
        ("UNKNOWN_WORDS", "prompt")
    ]


async def test_all_violations_are_listed_at_once_with_their_fields() -> None:
    request = Request(
        prompt="  ",
        negative_prompt="x" * 101,
        width=30,
        height=1024,
        step_count=0,
        guidance_scale=float("nan"),
        seed=-1,
        sampler=99,  # type: ignore[arg-type]
        sample_count=9,
        output_format=98,  # type: ignore[arg-type]
        preview_interval=-1,
    )
    async with serving(AnalyticModel()) as running:
        with pytest.raises(AioRpcError) as raised:
            await running.generation.GenerateImage(request).read()
    assert raised.value.code() is StatusCode.INVALID_ARGUMENT
    bad = _details(raised.value, error_details_pb2.BadRequest)
    assert {(v.field, v.reason) for v in bad.field_violations} == {  # type: ignore[attr-defined]
        ("prompt", "REQUIRED"),
        ("negative_prompt", "TOO_LONG"),
        ("width", "OUT_OF_RANGE"),
        ("width", "NOT_A_MULTIPLE"),
        ("height", "OUT_OF_RANGE"),
        ("step_count", "OUT_OF_RANGE"),
        ("guidance_scale", "NOT_FINITE"),
        ("seed", "OUT_OF_RANGE"),
        ("sampler", "UNSUPPORTED"),
        ("sample_count", "OUT_OF_RANGE"),
        ("output_format", "UNSUPPORTED"),
        ("preview_interval", "OUT_OF_RANGE"),
    }


async def test_an_unknown_model_is_not_found_and_the_message_says_what_exists() -> None:
    async with serving(AnalyticModel("one"), AnalyticModel("two")) as running:
        for name in ("three", ""):
            with pytest.raises(AioRpcError) as raised:
                await running.generation.GenerateImage(Request(model=name, prompt="x")).read()
            assert raised.value.code() is StatusCode.NOT_FOUND
            assert "one, two" in (raised.value.details() or "")


async def test_a_request_without_a_model_gets_the_configured_default() -> None:
    models = (AnalyticModel("one"), AnalyticModel("two"))
    async with serving(*models, default_model="two") as running:
        call = running.generation.GenerateImage(Request(prompt="a dog"))
        assert (await call.read()).accepted.model == "two"


async def test_a_full_queue_refuses_before_any_device_work_and_says_when_to_retry() -> None:
    model = GatedModel()
    async with serving(model, max_batch_rows=2, max_queued_requests=1) as running:
        running_call = running.generation.GenerateImage(Request(prompt="a dog"))
        await until(lambda: running.server.batcher.running_count == 1)
        waiting_call = running.generation.GenerateImage(Request(prompt="a dog"))
        await until(lambda: running.server.batcher.waiting_count == 1)
        with pytest.raises(AioRpcError) as raised:
            await running.generation.GenerateImage(Request(prompt="a dog")).read()
        assert raised.value.code() is StatusCode.RESOURCE_EXHAUSTED
        retry = _details(raised.value, error_details_pb2.RetryInfo)
        assert retry.retry_delay.ToNanoseconds() > 0  # type: ignore[attr-defined]
        model.open()
        for call in (running_call, waiting_call):
            assert pictures([response async for response in call])


async def test_a_waiting_request_is_told_its_position() -> None:
    model = GatedModel()
    async with serving(model, max_batch_rows=2) as running:
        first = running.generation.GenerateImage(Request(prompt="a dog", step_count=3))
        await until(lambda: running.server.batcher.running_count == 1)
        second = running.generation.GenerateImage(Request(prompt="a dog"))
        await until(lambda: running.server.batcher.waiting_count == 1)
        model.permit(2)
        assert (await second.read()).HasField("accepted")
        assert (await second.read()).queued.position == 0
        model.open()
        assert pictures([response async for response in first])


async def test_a_fault_of_the_model_is_internal_without_its_message() -> None:
    model = AnalyticModel()

    def fault(stage: str, rows: Tensor) -> None:
        raise RuntimeError("secret path")

    async with serving(model) as running:
        model.fault = fault
        with pytest.raises(AioRpcError) as raised:
            async for _ in running.generation.GenerateImage(Request(prompt="a dog")):
                pass
        assert raised.value.code() is StatusCode.INTERNAL
        assert "secret" not in (raised.value.details() or "")
        model.fault = lambda stage, rows: None
        call = running.generation.GenerateImage(Request(prompt="a dog"))
        assert pictures([response async for response in call])


async def test_a_lost_device_ends_streams_as_unavailable_and_the_server_as_failed() -> None:
    model = GatedModel()

    def lost(stage: str, rows: Tensor) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    async with serving(model) as running:
        call = running.generation.GenerateImage(Request(prompt="a dog"))
        await until(lambda: running.server.batcher.running_count == 1)
        model.fault = lost
        model.open()
        with pytest.raises(AioRpcError) as raised:
            async for _ in call:
                pass
        assert raised.value.code() is StatusCode.UNAVAILABLE
        assert isinstance(await running.server.failed, torch.AcceleratorError)
