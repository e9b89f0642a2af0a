"""Runs on tiny random models, for the tests of this folder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from services.trainer.run.process import execute
from services.trainer.run.reading import CheckedRun, check_run
from services.trainer.run.stopping import StopFlag

SIDE = 64


def write_photos(folder: Path, count: int = 3, *, side: int = SIDE, seed: int = 0) -> Path:
    """Write `count` pictures of noise on a slope."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(seed)
    for index in range(count):
        pixels = numbers.integers(0, 255, (side + 8 * index, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def tree(base: Path, photos: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """A configuration of four steps with prior preservation and accumulation on."""
    plain: dict[str, Any] = {
        "base_model": str(base),
        "output": str(output),
        "class_image_cache": str(output.parent / "class-images"),
        "instance": {"images": str(photos), "prompt": "a sks dog"},
        "prior": {"prompt": "a dog", "image_count": 3, "step_count": 2, "guidance_scale": 2.0},
        "optimization": {
            "step_count": 4,
            "batch_size": 1,
            "learning_rate": 1e-3,
            "accumulation": 2,
            "max_gradient_norm": 1.0,
        },
        "pictures": {"caption_dropout": 0.25},
        "lora": {
            "rank": 4,
            "alpha": 2.0,
            "dropout": 0.1,
            "denoiser_targets": ["to_q", "to_k", "to_v", "to_out.0"],
        },
        "validation": {"interval": 0, "step_count": 2, "guidance_scale": 2.0},
        "tracking": {"tensorboard": False},
        "checkpoint_interval": 0,
    }
    if changes.get("method") == "full":
        del plain["lora"]
    return merged(plain, changes)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(dict(below))
    for key, value in above.items():
        inner = result.get(key)
        result[key] = (
            merged(inner, value)
            if isinstance(inner, dict) and isinstance(value, Mapping)
            else value
        )
    return result


def write_yaml(path: Path, content: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(content)))
    return path


class StopAfter(StopFlag):
    """Is set once a run has written so many lines of losses; takes no signals."""

    def __init__(self, output: Path, step: int) -> None:
        super().__init__()
        self._path, self._step = output / "losses.jsonl", step

    def listen(self) -> None:
        pass

    @property
    def is_set(self) -> bool:
        return self._path.is_file() and len(self._path.read_text().splitlines()) >= self._step


class NeverStops(StopFlag):
    """Takes no signals."""

    def listen(self) -> None:
        pass


def run_to_end(content: Mapping[str, Any]) -> CheckedRun:
    checked = check_run(content)
    assert execute(checked, NeverStops()) == 0
    return checked


def digest(output: Path) -> str:
    """Of the final weights and the loss curve."""
    total = hashlib.sha256()
    for part in _parts(output):
        total.update(part)
    return total.hexdigest()


def _parts(output: Path) -> Iterator[bytes]:
    yield (output / "losses.jsonl").read_bytes()
    tensors = load_file(output / "checkpoints" / "last.safetensors")
    for name in sorted(tensors):
        yield name.encode()
        yield tensors[name].numpy().tobytes()


def drawn_latents(pipeline: Any) -> torch.Tensor:
    """What a stock pipeline draws of the subject, always from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        "a sks dog",
        num_inference_steps=2,
        height=64,
        width=64,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )
    latents: torch.Tensor = drawn.images
    return latents
