"""A model on the default runtime of a CPU keeps the promise: same seed, same picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from services.diffusion.families.errors import ModelLoadError
from services.diffusion.families.loading import load_model
from services.diffusion.model import LoadedModel, ModelSpec
from services.graphs.graph import PrecisionName
from services.graphs.openvino_graph import native_precision
from services.graphs.threads import settle_torch_threads
from tests.diffusion.tiny import shared_cache

# The first test waits for an export, which a busy machine can draw out to minutes.
pytestmark = pytest.mark.timeout(900)


def load(folder: Path, cache_dir: Path, precision: PrecisionName) -> LoadedModel:
    return load_model(
        ModelSpec(
            name="tiny",
            path_or_hub_id=str(folder),
            device="cpu",
            thread_count=2,
            precision=precision,
            cache_dir=cache_dir,
        )
    )


@pytest.fixture(scope="module")
def model(emoji_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(emoji_folder, shared_cache(tmp_path_factory.getbasetemp()), "auto")


@pytest.fixture(scope="module")
def eight_bit_model(emoji_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(emoji_folder, shared_cache(tmp_path_factory.getbasetemp()), "int8")


def draw(model: LoadedModel, seeds: list[int]) -> np.ndarray:
    """Pictures of a few steps whose rows share every call."""
    shape = model.latent_shape(64, 72)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    state = torch.stack(noise)
    context = model.encode_prompts([f"prompt {seed}" for seed in seeds])
    for timestep in (999.0, 700.0, 300.0):
        timesteps = torch.tensor([timestep - seed for seed in seeds])
        state = state - 0.3 * model.denoise(state, timesteps, context)
    return model.decode(state)


def test_auto_means_openvino_on_a_cpu(model: LoadedModel) -> None:
    assert model.runtimes == {
        "denoiser": f"openvino-{native_precision()}",
        "decoder": f"openvino-{native_precision()}",
        "text_encoder": "openvino-float32",
    }


@pytest.mark.parametrize("fixture", ["model", "eight_bit_model"])
@pytest.mark.parametrize("seeds", [[3, 4], [5, 4, 3], [1, 2, 3, 4, 5, 6, 7]])
def test_a_picture_is_bit_for_bit_the_same_alone_and_in_a_batch(
    request: pytest.FixtureRequest, fixture: str, seeds: list[int]
) -> None:
    model: LoadedModel = request.getfixturevalue(fixture)
    together = draw(model, seeds)

    for position, seed in enumerate(seeds):
        assert np.array_equal(together[position], draw(model, [seed])[0])


def test_eight_bits_are_for_denoiser_and_decoder_and_nearly_the_same(
    model: LoadedModel, eight_bit_model: LoadedModel
) -> None:
    assert eight_bit_model.runtimes == {
        "denoiser": "openvino-int8",
        "decoder": "openvino-int8",
        "text_encoder": "openvino-float32",
    }
    exact = draw(model, [1, 2, 3]).astype(int)
    difference = np.abs(draw(eight_bit_model, [1, 2, 3]) - exact)
    # The weights are random, the range of the pictures is not: a few levels of 255.
    assert 0 < difference.mean() < 4


def test_eight_bits_are_refused_where_openvino_does_not_compute(
    emoji_folder: Path, tmp_path: Path
) -> None:
    spec = ModelSpec(
        name="tiny",
        path_or_hub_id=str(emoji_folder),
        runtime="torch",
        device="cpu",
        precision="int8",
        cache_dir=tmp_path,
    )

    with pytest.raises(ModelLoadError, match="8 bits are for runtime openvino"):
        load_model(spec)


def test_embeddings_are_those_of_torch(model: LoadedModel, emoji_model: LoadedModel) -> None:
    prompts = ["a red apple", "", "rocket " * 20]

    torch.testing.assert_close(
        model.encode_prompts(prompts), emoji_model.encode_prompts(prompts), atol=1e-5, rtol=1e-5
    )


def test_warm_up_leaves_results_alone(model: LoadedModel) -> None:
    before = draw(model, [1])

    model.warm_up()

    assert np.array_equal(draw(model, [1]), before)


def test_torch_keeps_one_thread_only_if_it_computes_no_graph(
    model: LoadedModel, plain_model: LoadedModel
) -> None:
    thread_count = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        settle_torch_threads([model, plain_model])
        assert torch.get_num_threads() == 2
        settle_torch_threads([model])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(thread_count)
