"""The published models, converted, compute what ncnn computes; damaged files are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services.upscale.architectures.recognition import build, recognise
from services.upscale.architectures.rrdbnet import RrdbShape
from services.upscale.architectures.srvgg import SrvggShape
from services.upscale.cli import LARGEST_MEAN_DIFFERENCE
from services.upscale.loading import checked_weights
from services.upscale.weights.descriptor import PackageSource, read_descriptor
from services.upscale.weights.errors import BrokenWeightsError, UnsupportedWeightsError
from services.upscale.weights.files import load_weights, package_files, weights_digest
from services.upscale.weights.library import Entry
from services.upscale.weights.ncnn_format import read_ncnn
from services.upscale.weights.parity import compare, photo_crop, run_ncnn
from tests.upscale.conftest import SHIPPED

pytestmark = pytest.mark.timeout(600)

# The large network alone would take a minute for what the others show with the same code.
_SMALL_CROP = 24


def _package(stem: str) -> tuple[Path, Path]:
    source = read_descriptor(SHIPPED / "realesrgan-x4plus").weights
    assert isinstance(source, PackageSource)
    return package_files(source.model_copy(update={"stem": f"models/{stem}"}))


def test_the_shipped_weights_are_the_published_ones(entries: dict[str, Entry]) -> None:
    published = read_ncnn(*_package("REALESRGAN_ANIMAVIDEOV3_UP4X"))
    shipped, _ = checked_weights(entries["realesr-animevideov3"])
    assert weights_digest(shipped) == weights_digest(published)
    assert {t.dtype for n, t in shipped.items() if t.ndim == 4} == {torch.float16}


def test_the_small_network_computes_what_ncnn_does_on_photographs() -> None:
    files = _package("REALESRGAN_ANIMAVIDEOV3_UP4X")
    results = compare(read_ncnn(*files), *files)
    assert [each.photo for each in results] == ["astronaut", "chelsea", "coffee"]
    assert max(each.mean_difference for each in results) < LARGEST_MEAN_DIFFERENCE
    assert max(each.max_difference for each in results) < 1e-4


@pytest.mark.parametrize("stem", ["REALESRGAN_X4PLUSANIME_UP4X", "REALESRGAN_X4PLUS_UP4X"])
def test_the_large_networks_compute_what_ncnn_does(stem: str) -> None:
    files = _package(stem)
    weights = read_ncnn(*files)
    picture = photo_crop("coffee", _SMALL_CROP).astype("float32").transpose(2, 0, 1) / 255
    with torch.inference_mode():
        ours = build(recognise(weights), weights)(torch.from_numpy(picture)[None])[0].numpy()
    difference = abs(ours - run_ncnn(*files, picture))
    assert difference.mean() < LARGEST_MEAN_DIFFERENCE
    assert difference.max() < 1e-3


def test_architectures_are_told_from_the_weights_alone() -> None:
    assert recognise(read_ncnn(*_package("REALESRGAN_X4PLUS_UP4X"))) == RrdbShape(
        channel_count=3, feature_count=64, growth_count=32, block_count=23, scale=4
    )
    assert recognise(read_ncnn(*_package("REALESRGAN_ANIMAVIDEOV3_UP4X"))) == SrvggShape(
        channel_count=3, feature_count=64, body_conv_count=16, scale=4
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-100], "ends before"),
        (lambda data: data + b"1234", "4 bytes more"),
        (lambda data: b"\1\2\3\4" + data[4:], "unknown storage tag"),
    ],
)
def test_a_damaged_binary_is_named(tmp_path: Path, damage: object, message: str) -> None:
    param, binary = _package("REALESRGAN_ANIMAVIDEOV3_UP4X")
    damaged = tmp_path / "model.bin"
    damaged.write_bytes(damage(binary.read_bytes()))  # type: ignore[operator]
    with pytest.raises(BrokenWeightsError, match=message):
        read_ncnn(param, damaged)


@pytest.mark.parametrize("text", ["", "7767517\n1 1\nConvolution", "not a param file"])
def test_a_damaged_param_file_is_named(tmp_path: Path, text: str) -> None:
    param = tmp_path / "model.param"
    param.write_text(text)
    with pytest.raises((BrokenWeightsError, UnsupportedWeightsError), match=r"param|neither"):
        read_ncnn(param, _package("REALESRGAN_ANIMAVIDEOV3_UP4X")[1])


def test_converted_weights_survive_their_file(tmp_path: Path) -> None:
    weights = read_ncnn(*_package("REALESRGAN_ANIMAVIDEOV3_UP4X"))
    save_file(weights, tmp_path / "model.safetensors")
    loaded = load_weights(tmp_path / "model.safetensors")
    assert weights_digest(loaded) == weights_digest(weights)
