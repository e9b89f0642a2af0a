"""`python -m models.recipe STAGE`: makes the embedded model, from drawings to the shipped folder.

    data         fetch the drawings, pose them, learn the tokenizer
    pack         optional: all drawings in one file, for a machine without network
    take-up      optional: go on with the training of the model in --target
    autoencoder  pictures to latents and back
    translator   paint what is held out from the same things' other styles
    latents      encode pictures of every drawing
    text         what captions look like
    denoiser     the model itself
    weak         optional: find the drawings that the denoiser should be shown more often
    keep         optional: write what take-up needs beside the exported model to --kept
    decoder      optional: polish the decoder against a critic; export again afterwards
    export       write the folder in diffusers layout
    control      optional: a ControlNet for edges beside the model in --target
    proofs       optional: sheets of picture to picture, inpainting, negative prompts and edges
    judge        train the classifier that rates the pictures
    evaluate     draw everything, rate it, make the sheets
    card         write the model's card from what was measured
    verdicts     optional: have the judge rate the snapshots, for the curve
    all          all of these in order, without the optional ones

Every stage resumes; one that is done returns at once. Runs on CPU cores or on one GPU.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from models.recipe import (
    card,
    emphasis,
    evaluate,
    export,
    judge,
    keep,
    proofs,
    stages,
    verdicts,
)
from models.recipe.parallel import pick_device
from models.recipe.workdir import WorkDir

ROOT = Path(__file__).parents[2]
STAGES = (
    *("take-up", "data", "pack", "autoencoder", "translator"),
    *("latents", "text", "denoiser"),
    *("weak", "keep", "decoder"),
    *("export", "control", "proofs", "judge", "evaluate", "card", "verdicts"),
)
OPTIONAL = ("take-up", "pack", "weak", "keep", "decoder", "control", "proofs", "verdicts")


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that the command line names."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    chosen = [name for name in STAGES if name not in OPTIONAL]
    for name in chosen if options.stage == "all" else [options.stage]:
        _actions(options)[name]()


def _actions(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    root: Path = options.work_dir
    work, target = WorkDir(root=root), options.target
    machine = stages.Machine(device=options.device, process_count=options.processes)
    budget = stages.Budget(
        autoencoder_scale=options.autoencoder_scale,
        text_minutes=options.text_minutes,
        sample_count=options.samples,
        denoiser_minutes=options.denoiser_minutes,
        latent_chunks=options.latent_chunks,
    )
    return {
        "data": lambda: stages.prepare_data(root),
        "pack": lambda: stages.pack_drawings(root),
        "take-up": lambda: keep.take_up(target, options.kept, work),
        "keep": lambda: keep.keep(work, options.kept),
        "autoencoder": lambda: stages.train_autoencoder(root, machine, budget),
        "text": lambda: stages.train_text(root, machine, budget),
        "translator": lambda: stages.complete_styles(root, machine, options.translator_minutes),
        "latents": lambda: stages.encode_latents(root, machine, budget),
        "denoiser": lambda: stages.train_denoiser(root, machine, budget),
        "weak": lambda: emphasis.find_weak(work),
        "decoder": lambda: stages.polish_decoder(root, machine),
        "export": lambda: export.export(work, target, significant_bits=options.significant_bits),
        "control": lambda: stages.train_control(root, target, machine, options.control_minutes),
        "proofs": lambda: proofs.make_proofs(target, options.docs),
        "verdicts": lambda: verdicts.rate_snapshots(work),
        "judge": lambda: judge.train_judge(work, options.device, options.judge_minutes),
        "evaluate": lambda: evaluate.evaluate(work, target, options.docs),
        "card": lambda: card.write_card(target),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = stages.Budget()
    parser.add_argument("stage", choices=(*STAGES, "all"), nargs="?", default="all")
    parser.add_argument("--work-dir", type=Path, default=ROOT / ".cache" / "emoji-2")
    parser.add_argument("--target", type=Path, default=ROOT / "models" / "limner-emoji")
    parser.add_argument(
        "--kept", type=Path, default=ROOT / "models" / "recipe" / "text.safetensors"
    )
    parser.add_argument("--autoencoder-scale", type=float, default=default.autoencoder_scale)
    parser.add_argument("--translator-minutes", type=float, default=18.0)
    parser.add_argument("--text-minutes", type=float, default=default.text_minutes)
    parser.add_argument("--samples", type=int, default=default.sample_count)
    parser.add_argument("--denoiser-minutes", type=float, default=default.denoiser_minutes)
    parser.add_argument("--latent-chunks", type=int, default=default.latent_chunks)
    parser.add_argument("--device", type=torch.device, default=pick_device())
    parser.add_argument("--processes", type=int, default=1, help="on a CPU")
    parser.add_argument("--significant-bits", type=int, default=export.SIGNIFICANT_BITS)
    parser.add_argument("--control-minutes", type=float, default=15.0)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--judge-minutes", type=float, default=judge.TRAINING_MINUTES)
    return parser


if __name__ == "__main__":
    main()
