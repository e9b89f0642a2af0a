import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.trainer.run.base_model import BaseModelError, read_base_model
from services.trainer.run.buckets import bucket_sizes
from services.trainer.run.components import Components
from services.trainer.run.configuration import PictureSection
from services.trainer.run.dataset import find_pictures
from services.trainer.run.preparation import prepare
from services.trainer.run.reading import check_run
from services.trainer.run.reporting import RunReport
from services.trainer.run.rows import RowSource
from services.trainer.run.violations import StoppedError
from tests.trainer.run.runs import NeverStops, tree

_UNET = "unet/diffusion_pytorch_model.safetensors"


class _Encoder:
    """Counts the pictures that it was given."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, picture_13HW: Tensor) -> tuple[Tensor, None]:
        self.count += 1
        return picture_13HW[:, :, ::4, ::4], None


def _source(photos: Path, encode: _Encoder) -> RowSource:
    pictures, _ = find_pictures(photos, field="images", side=64, captions=False)
    return RowSource(
        "instance",
        pictures,
        "a sks dog",
        buckets=bucket_sizes(64, 8, "square"),
        section=PictureSection(),
        cached=True,
        seed=0,
        encode=encode,
    )


@pytest.mark.parametrize(("first", "count"), [(0, 2), (7, 5), (0, 10_000)])
def test_what_the_rest_of_a_run_wants_is_encoded_beforehand_and_nothing_else(
    photos: Path, first: int, count: int
) -> None:
    encode = _Encoder()
    source = _source(photos, encode)
    source.prepare(first, count, validated=1, before_each=lambda: None)
    rows = [*source.rows(first, min(count, 100)), *source.validation_rows(1)]
    assert encode.count == len({(row.index, row.flipped) for row in rows})
    known = encode.count
    for row in rows:
        source.latents(row)
    assert encode.count == known


def test_encoding_stops_between_pictures_when_it_is_asked_to(photos: Path) -> None:
    encode = _Encoder()

    def stop() -> None:
        if encode.count == 2:
            raise StoppedError("asked to stop")

    with pytest.raises(StoppedError):
        _source(photos, encode).prepare(0, 10_000, validated=0, before_each=stop)
    assert encode.count == 2


@pytest.mark.parametrize("trains_text", [True, False])
def test_what_is_only_needed_beforehand_is_let_go(
    sdxl_model: Path, photos: Path, tmp_path: Path, trains_text: bool
) -> None:
    changes = {"optimization": {"train_text_encoder": trains_text}}
    run = check_run(tree(sdxl_model, photos, tmp_path / "run", **changes))
    components = Components(run.base)
    report = RunReport(tmp_path / "run")
    prepared = prepare(
        run,
        components,
        steps_done=0,
        device=torch.device("cpu"),
        report=report,
        stop=NeverStops(),
    )
    assert not components.loaded
    prepared.encode_prompts(["a sks dog"])
    assert bool(components.loaded) == trains_text


def test_a_denoiser_in_another_type_has_the_weights_of_its_file(plain_model: Path) -> None:
    base = read_base_model(plain_model)
    state = load_file(plain_model / _UNET)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = Components(base).part("unet", dtype).state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name].to(dtype)) for name in state)


@pytest.mark.parametrize("fault", ["missing", "mismatched"])
def test_weights_that_do_not_fit_are_refused(plain_model: Path, tmp_path: Path, fault: str) -> None:
    folder = shutil.copytree(plain_model, tmp_path / "model")
    state = load_file(folder / _UNET)
    if fault == "missing":
        del state["conv_in.weight"]
    else:
        state["conv_in.weight"] = torch.zeros(3, 3)
    save_file(state, folder / _UNET)
    with pytest.raises(BaseModelError, match=rf"{fault} keys conv_in\.weight \(1 in all\)"):
        Components(read_base_model(folder)).part("unet")
