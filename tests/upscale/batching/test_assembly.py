"""Tiles put together give the picture that one large tile would have given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prometheus_client import CollectorRegistry
from torch import Tensor

from tests.upscale.doubles import NearestUpscaler, new_batcher, noise, repeated, run, submit


@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    channel_count=st.sampled_from([1, 2, 3, 4]),
    scale=st.sampled_from([1, 2, 4]),
)
def test_without_a_network_every_pixel_is_where_it_was(
    height: int, width: int, channel_count: int, scale: int
) -> None:
    pixels = noise(height, width, channel_count)
    model = NearestUpscaler(scale=scale)
    batcher = new_batcher(CollectorRegistry())
    job, sink = submit(batcher, model, pixels)
    run(batcher, job)
    assert sink.error is None
    assert np.array_equal(sink.picture, repeated(pixels, scale))


@pytest.mark.parametrize("scale", [2.0, 2.5, 3.3, 3.99])
def test_a_scale_between_is_what_lanczos_makes_of_the_whole(scale: float) -> None:
    pixels = noise(90, 130)
    batcher = new_batcher(CollectorRegistry())
    job, sink = submit(batcher, NearestUpscaler(), pixels, scale=scale)
    run(batcher, job)
    size = (round(130 * scale), round(90 * scale))
    whole = repeated(pixels, 4).astype(np.float32)
    # In float, for Pillow would round and clip between its two passes.
    channels = [Image.fromarray(np.ascontiguousarray(whole[:, :, i])) for i in range(3)]
    reduced = [np.asarray(each.resize(size, Image.Resampling.LANCZOS)) for each in channels]
    expected = np.stack(reduced, axis=2).round().clip(0, 255)
    difference = np.abs(sink.picture - expected)
    # At the border Pillow cuts the filter off where tiles reflect.
    assert difference[8:-8, 8:-8].max() <= 1
    assert difference.max() < 64


def test_opaque_alpha_costs_no_tile_and_varying_alpha_is_enlarged_too() -> None:
    opaque, varying = noise(20, 20, 4), noise(20, 20, 4)
    opaque[:, :, 3] = 255
    for pixels, layer_count in ((opaque, 1), (varying, 2)):
        model = NearestUpscaler()
        batcher = new_batcher(CollectorRegistry())
        job, sink = submit(batcher, model, pixels)
        run(batcher, job)
        assert [shape[0] for shape in model.calls] == [layer_count]
        assert np.array_equal(sink.picture, repeated(pixels, 4))


def test_tiles_reflect_the_picture_beyond_its_edges() -> None:
    seen: list[Tensor] = []
    model = NearestUpscaler()
    model.fault = seen.append
    batcher = new_batcher(CollectorRegistry())
    pixels = noise(16, 16, 1)
    job, _ = submit(batcher, model, pixels)
    run(batcher, job)
    expected = np.pad(pixels[:, :, 0], 8, mode="reflect")
    assert np.array_equal((seen[0][0, 0].numpy() * 255).round().astype(np.uint8), expected)


def test_a_band_is_a_row_of_tiles_and_no_more() -> None:
    batcher = new_batcher(CollectorRegistry())
    job, sink = submit(batcher, NearestUpscaler(), noise(300, 100))
    run(batcher, job)
    heights = [band.shape[0] for band in sink.bands]
    assert len(heights) == len(job.plan.rows.spans) > 4
    assert max(heights) <= 64 * 4
