"""The curve of judge accuracy against training: rates every snapshot that was not rated before.

Called by the command line while the training runs or after it. Draws a fixed hundred pictures a
snapshot, in ten steps, and appends the shares to `curve.jsonl`.
"""

from __future__ import annotations

import json
import logging

from models.recipe import judge, measures
from models.recipe.curve import append
from models.recipe.dataset import load_dataset
from models.recipe.drawing import Painter
from models.recipe.evaluate import PRECISION, ask, truth_of
from models.recipe.export import Defaults, build_pipeline
from models.recipe.questions import COLOUR, HELD_OUT, TRAINED, choose_questions, whole_scope
from models.recipe.workdir import WorkDir

logger = logging.getLogger(__name__)

COUNTS = {TRAINED: 60, HELD_OUT: 24, COLOUR: 16}
SETTINGS = Defaults(step_count=10, guidance_scale=2.5, sampler="ddim")


def rate_snapshots(work: WorkDir) -> None:
    """Append a line for each snapshot that has none; the judge must be there."""
    dataset = load_dataset(work.root)
    model = judge.load_judge(work, dataset)
    everything = whole_scope(dataset.concepts)
    questions = choose_questions(dataset.concepts, everything, COUNTS[TRAINED])
    chosen = [
        question
        for kind, count in COUNTS.items()
        for question in [q for q in questions if q.kind == kind][:count]
    ]
    done = _rated(work)
    for path in work.snapshots:
        if int(path.stem) in done:
            continue
        painter = Painter(build_pipeline(work, path)[0], SETTINGS, precision=PRECISION)
        answers = ask(painter, chosen)
        record: dict[str, object] = {"samples": int(path.stem)}
        for kind in COUNTS:
            part = answers.of(kind)
            truth = truth_of(dataset, part.questions)
            rating = judge.rate(model, measures.as_tensor(part.pictures), truth)
            name = kind.replace(" ", "_")
            record |= {f"top1_{name}": rating.top1, f"named_{name}": rating.top1_of_concepts}
        append(work.curve, record)
        logger.info("%s", record)


def _rated(work: WorkDir) -> set[int]:
    if not work.curve.exists():
        return set()
    lines = [json.loads(line) for line in work.curve.read_text().splitlines()]
    return {line["samples"] for line in lines if "top1_trained" in line}
