"""A real TensorRT builder accepts every component that is served, in half precision.

It builds without a GPU, for several at once; that an engine runs is left to a machine with one.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from services.diffusion.families.sd1 import engine_sources
from services.graphs.graph import GraphSource
from services.graphs.store import GraphStore
from services.graphs.tensorrt.store import EngineStore
from services.upscale.loading import checked_weights
from services.upscale.sources import tiles_source
from services.upscale.weights.library import find_entries

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="needs TensorRT for RTX: pip install 'limner[tensorrt]'",
    ),
]

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "models" / "limner-emoji"
ADA_AND_BLACKWELL = ("8.9", "12.0")


def upscaler(name: str) -> GraphSource:
    entry = find_entries([ROOT / "models" / "upscalers"])[name]
    if missing := entry.missing():
        pytest.skip(missing)
    weights, descriptor = checked_weights(entry)
    return tiles_source(weights, revision=name, tiling=descriptor.tiles())


UPSCALERS = ("realesr-animevideov3", "realesr-general-x4v3", "realesrgan-x4plus-anime")
TOO_LARGE_FOR_EVERY_RUN = "realesrgan-x4plus"
COMPONENTS = {
    "denoiser": ("float16", "FLOAT"),
    "decoder": ("bfloat16", "UINT8"),
    "text_encoder": ("float32", "FLOAT"),
}
"""Precision and output of each component of the embedded model."""


def test_nothing_that_is_served_is_left_out_here() -> None:
    assert {*UPSCALERS, TOO_LARGE_FOR_EVERY_RUN} == set(find_entries([ROOT / "models/upscalers"]))
    assert COMPONENTS.keys() == {each.name for each in engine_sources(EMBEDDED)}


@pytest.mark.parametrize(
    "name", [*UPSCALERS, pytest.param(TOO_LARGE_FOR_EVERY_RUN, marks=pytest.mark.soak)]
)
def test_upscalers_build_for_several_gpus_in_one_engine(
    store: GraphStore, tmp_path: Path, name: str
) -> None:
    source = upscaler(name)

    engine = EngineStore(tmp_path, graphs=store).engine(source, capabilities=ADA_AND_BLACKWELL)

    assert engine.precision == "float16"
    assert [(each.dtype, each.shape) for each in engine.inputs] == [("FLOAT", (-1, 3, -1, -1))]
    assert [(each.dtype, each.shape[-1]) for each in engine.outputs] == [("UINT8", 3)]
    # The weights are in it, in 16 bits.
    parameter_count = sum(each.numel() for each in source.module.parameters())
    assert engine.path.stat().st_size > 2 * parameter_count


@pytest.fixture(scope="module")
def embedded() -> dict[str, GraphSource]:
    return {source.name: source for source in engine_sources(EMBEDDED)}


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_graph_of_the_embedded_model_builds(
    store: GraphStore, tmp_path: Path, embedded: dict[str, GraphSource], name: str
) -> None:
    source = embedded[name]
    precision, output = COMPONENTS[name]

    engine = EngineStore(tmp_path, graphs=store).engine(source, capabilities=ADA_AND_BLACKWELL)

    assert engine.precision == precision
    assert [each.name for each in engine.inputs] == list(source.input_names)
    assert [each.dtype for each in engine.outputs] == [output]
    described = json.loads(engine.path.with_name("engine.json").read_text())
    assert described["package"] == "tensorrt_rtx"
    assert sorted(described["capabilities"]) == sorted(ADA_AND_BLACKWELL)
