from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from services.trainer.run.base_model import read_base_model
from services.trainer.run.buckets import bucket_sizes, nearest_bucket
from services.trainer.run.components import Components, encode_moments
from services.trainer.run.configuration import PictureSection
from services.trainer.run.dataset import find_pictures
from services.trainer.run.rows import RowSource
from tests.trainer.run.runs import run_to_end, tree


@given(st.integers(4, 32), st.sampled_from([8, 16, 64]))
def test_shapes_have_legal_sides_and_about_as_many_pixels(units: int, multiple: int) -> None:
    side = units * multiple
    sizes = bucket_sizes(side, multiple, "buckets")
    assert (side, side) in sizes
    assert len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        assert 0.5 <= height / width <= 2.0
        assert abs(height * width - side * side) <= multiple * max(height, width) / 2


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_a_picture_goes_to_the_shape_most_like_it(height: int, width: int) -> None:
    sizes = bucket_sizes(512, 64, "buckets")
    ratios = [w / h for h, w in sizes]
    found = nearest_bucket(height, width, sizes)
    ratio = found[1] / found[0]
    assert all(
        max(ratio * height / width, width / height / ratio)
        <= max(other * height / width, width / height / other) * (1 + 1e-9)
        for other in ratios
    )


@pytest.fixture
def oblong(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, size in enumerate([(64, 128), (128, 64), (80, 80)]):
        slope = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
        Image.fromarray(slope.astype(np.uint8)).save(folder / f"{index}.png")
    return folder


def test_rows_have_the_shape_of_their_picture(plain_model: Path, oblong: Path) -> None:
    pictures, faults = find_pictures(oblong, field="images", side=64, captions=False)
    assert not faults
    source = RowSource(
        "instance",
        pictures,
        "a sks dog",
        buckets=bucket_sizes(64, 8, "buckets"),
        section=PictureSection(),
        cached=True,
        seed=0,
        encode=partial(encode_moments, Components(read_base_model(plain_model)).part("vae")),
    )
    rows = source.validation_rows(3)
    # 88 × 48 is the nearest to 2 : 1 of as many pixels as 64 × 64; latents are 4 times smaller.
    shapes = [tuple(source.latents(row).shape[2:]) for row in rows]
    tall, wide, square = shapes
    assert tall == wide[::-1]
    assert tall[0] > tall[1]
    assert square == (16, 16)
    height, width, top, left, *cut = source.time_ids(rows[0])
    assert [side // 4 for side in cut] == list(tall)
    assert height == cut[0] + 2 * top or height == cut[0] + 2 * top + 1
    assert width == cut[1] + 2 * left or width == cut[1] + 2 * left + 1


def test_a_run_mixes_shapes_in_one_batch(plain_model: Path, oblong: Path, tmp_path: Path) -> None:
    changes = {"pictures": {"aspect": "buckets"}, "optimization": {"batch_size": 3}}
    run_to_end(tree(plain_model, oblong, tmp_path / "run", **changes))
    assert len((tmp_path / "run" / "losses.jsonl").read_text().splitlines()) == 4
