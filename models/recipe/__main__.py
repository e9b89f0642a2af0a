"""`python -m models.recipe STAGE`: makes the embedded model, from drawings to the shipped folder.

    data         fetch the drawings, pose them, learn the tokenizer
    autoencoder  pictures to latents and back
    text         what captions mean
    latents      encode all views
    denoiser     the model itself
    decoder      optional: polish the decoder alone; export again afterwards
    export       write the folder in diffusers layout
    judge        train the classifier that rates the pictures
    evaluate     draw everything, rate it, make the sheets
    all          all of these in order, without decoder

Every stage resumes; one that is done returns at once. Runs on two CPU cores or on one GPU.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from models.recipe import evaluate, export, judge, stages
from models.recipe.workdir import WorkDir

ROOT = Path(__file__).parents[2]
STAGES = (
    *("data", "autoencoder", "text", "latents", "denoiser", "decoder"),
    *("export", "judge", "evaluate"),
)


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that the command line names."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    chosen = [name for name in STAGES if name != "decoder"]
    for name in chosen if options.stage == "all" else [options.stage]:
        _actions(options)[name]()


def _actions(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    root: Path = options.work_dir
    work, target = WorkDir(root=root), options.target
    budget = stages.Budget(
        autoencoder_scale=options.autoencoder_scale,
        text_minutes=options.text_minutes,
        denoiser_scale=options.denoiser_scale,
    )
    return {
        "data": lambda: stages.prepare_data(root),
        "autoencoder": lambda: stages.train_autoencoder(root, budget),
        "text": lambda: stages.train_text(root, budget),
        "latents": lambda: stages.encode_latents(root),
        "denoiser": lambda: stages.train_denoiser(root, budget),
        "decoder": lambda: stages.polish_decoder(root),
        "export": lambda: export.export(work, target),
        "judge": lambda: judge.train_judge(work, options.judge_minutes),
        "evaluate": lambda: evaluate.evaluate(work, target, ROOT / "docs"),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.recipe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = stages.Budget()
    parser.add_argument("stage", choices=(*STAGES, "all"), nargs="?", default="all")
    parser.add_argument("--work-dir", type=Path, default=ROOT / ".cache" / "emoji")
    parser.add_argument("--target", type=Path, default=ROOT / "models" / "limner-emoji")
    parser.add_argument("--autoencoder-scale", type=float, default=default.autoencoder_scale)
    parser.add_argument("--text-minutes", type=float, default=default.text_minutes)
    parser.add_argument("--denoiser-scale", type=float, default=default.denoiser_scale)
    parser.add_argument("--judge-minutes", type=float, default=judge.TRAINING_MINUTES)
    return parser


if __name__ == "__main__":
    main()
