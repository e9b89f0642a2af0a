"""How equal a picture stays: alone or in a batch, and from one runtime to another.

    python -m benchmarks.reproducibility models/limner-emoji --prompts "a red apple" "a rocket"

Draws every prompt with its own seed on every runtime for CPUs and in 8 bits, once alone and once
together with the others, and compares finished pixels. Differences are in levels of 255. Besides
the table it can keep the pictures, one row of them for each runtime, for the eye to judge.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.report import Cell, json_line, table
from services.diffusion.families.loading import load_model
from services.diffusion.model import LoadedModel, ModelSpec, UInt8Array
from services.diffusion.noise import NoiseStream
from services.diffusion.samplers.registry import plan
from services.graphs.graph import PrecisionName, RuntimeName

RUNTIMES: tuple[tuple[RuntimeName, PrecisionName], ...] = (
    ("torch", "auto"),
    ("onnxruntime", "auto"),
    ("openvino", "auto"),
    ("openvino", "int8"),
)
PROMPTS = ("a red apple", "a dog face", "a rocket", "a house", "a cat on a blue background")

Difference = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, compare and print."""
    options = _parser().parse_args(arguments)
    reference: UInt8Array | None = None
    results: dict[str, dict[str, Difference]] = {}
    strips = []
    for runtime, precision in RUNTIMES:
        model = load_model(
            ModelSpec(
                name="model",
                path_or_hub_id=options.model,
                runtime=runtime,
                precision=precision,
                device="cpu",
                cache_dir=options.cache_dir,
            )
        )
        seeds = range(len(options.prompts))
        pairs = list(zip(options.prompts, seeds, strict=True))
        alone = np.concatenate([draw(model, [pair]) for pair in pairs])
        reference = alone if reference is None else reference
        results[model.runtimes["denoiser"]] = {
            "alone_or_together": difference(alone, draw(model, pairs)),
            "from_torch": difference(alone, reference),
        }
        strips.append(np.concatenate(list(alone), axis=1))
    print(difference_table(results), "\n")
    if options.save:
        Image.fromarray(np.concatenate(strips)).save(options.save)
    print(json_line("reproducibility", results))


def draw(model: LoadedModel, pairs: Sequence[tuple[str, int]]) -> UInt8Array:
    """Pictures (N, H, W, 3) of (prompt, seed) with the model's defaults, all rows in every call."""
    defaults = model.defaults
    trajectory = plan("ddim", model.schedule, defaults.step_count)
    shape = model.latent_shape(defaults.width, defaults.height)
    state = trajectory.initial_scale * torch.stack(
        [NoiseStream(seed, shape).draw() for _, seed in pairs]
    )
    context = model.encode_prompts([*([""] * len(pairs)), *(prompt for prompt, _ in pairs)])
    for call in range(trajectory.call_count):
        rows = torch.cat([state, state]) * float(trajectory.input_scale[call])
        timesteps = torch.full((len(rows),), float(trajectory.timesteps[call]))
        unconditional, conditional = model.denoise(rows, timesteps, context).chunk(2)
        output = unconditional + defaults.guidance_scale * (conditional - unconditional)
        of_state, of_output = map(float, trajectory.coefficients[call, 0, :2])
        state = of_state * state + of_output * output
    return model.decode(state)


def difference(first: UInt8Array, second: UInt8Array) -> Difference:
    """Largest and mean difference in levels, and the share of pictures that are equal."""
    levels = np.abs(first.astype(int) - second.astype(int))
    return {
        "largest": float(levels.max()),
        "mean": float(levels.mean()),
        "equal": float(np.mean([not picture.any() for picture in levels])),
    }


def difference_table(results: dict[str, dict[str, Difference]]) -> str:
    """Runtimes down, differences across."""
    rows: list[list[Cell]] = [
        [name, *(f"{value:.3g}" for kind in found.values() for value in kind.values())]
        for name, found in results.items()
    ]
    kinds = ("alone or together", "from torch")
    header = [f"{kind}: {what}" for kind in kinds for what in ("largest", "mean", "equal")]
    return table(["runtime", *header], rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.reproducibility", description=__doc__)
    parser.add_argument("model", nargs="?", default="models/limner-emoji")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--save", type=Path, help="PNG to write the pictures to")
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache/limner"))
    return parser


if __name__ == "__main__":
    main()
