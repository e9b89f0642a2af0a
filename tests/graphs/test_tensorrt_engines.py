"""A real TensorRT builder accepts every component that is served, in half precision.

It builds without a GPU, for several at once; that an engine runs is left to a machine with one.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from services.diffusion.families.sd1.components import Components, load_components
from services.diffusion.families.sd1.layout import Layout, read_layout
from services.diffusion.families.sd1.sources import (
    decoder_source,
    denoiser_source,
    text_encoder_source,
)
from services.graphs.graph import GraphSource, Precision
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
ADA_AND_BLACKWELL = ("8.9", "12.0")


def upscaler(name: str) -> GraphSource:
    entry = find_entries([ROOT / "models" / "upscalers"])[name]
    if missing := entry.missing():
        pytest.skip(missing)
    weights, descriptor = checked_weights(entry)
    return tiles_source(weights, revision=name, tiling=descriptor.tiles())


@pytest.mark.parametrize(
    "name",
    [
        "realesr-animevideov3",
        "realesrgan-x4plus-anime",
        pytest.param("realesrgan-x4plus", marks=pytest.mark.soak),
    ],
)
def test_upscalers_build_for_several_gpus_in_one_engine(
    store: GraphStore, tmp_path: Path, name: str
) -> None:
    source = upscaler(name)

    engine = EngineStore(tmp_path, graphs=store).engine(source, capabilities=ADA_AND_BLACKWELL)

    assert engine.precision == "float16"
    assert [each.shape for each in engine.inputs] == [(-1, 3, -1, -1)]
    assert [each.dtype for each in (*engine.inputs, *engine.outputs)] == ["FLOAT", "FLOAT"]
    # The weights are in it, in 16 bits.
    parameter_count = sum(each.numel() for each in source.module.parameters())
    assert engine.path.stat().st_size > 2 * parameter_count


@pytest.fixture(scope="module")
def embedded() -> tuple[Layout, Components]:
    layout = read_layout(ROOT / "models" / "limner-emoji")
    return layout, load_components(layout)


@pytest.mark.parametrize(
    ("make", "precision", "output"),
    [
        (lambda layout, parts: denoiser_source(layout, parts.unet), "float16", "FLOAT"),
        (lambda layout, parts: decoder_source(layout, parts.vae), "bfloat16", "UINT8"),
        (lambda layout, parts: text_encoder_source(layout, parts.text_encoder), "float32", "FLOAT"),
    ],
    ids=["denoiser", "decoder", "text encoder"],
)
def test_every_graph_of_the_embedded_model_builds(
    store: GraphStore,
    tmp_path: Path,
    embedded: tuple[Layout, Components],
    make: Callable[[Layout, Components], GraphSource],
    precision: Precision,
    output: str,
) -> None:
    source = make(*embedded)

    engine = EngineStore(tmp_path, graphs=store).engine(source, capabilities=ADA_AND_BLACKWELL)

    assert engine.precision == precision
    assert [each.name for each in engine.inputs] == list(source.input_names)
    assert [each.dtype for each in engine.outputs] == [output]
    described = json.loads(engine.path.with_name("engine.json").read_text())
    assert described["package"] == "tensorrt_rtx"
    assert sorted(described["capabilities"]) == sorted(ADA_AND_BLACKWELL)
