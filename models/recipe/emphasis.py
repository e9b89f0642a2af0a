"""Which drawings the model still gets wrong, so that training shows them more often.

Called by the command line while the training is stopped: draws every trained pair once, on a
colour, which is harder than on white, and has the judge say which are right. `stages` reads the
result when the denoiser goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from models.recipe import judge, measures
from models.recipe.captions import BACKGROUNDS, STYLES, article_for
from models.recipe.dataset import load_dataset
from models.recipe.drawing import Painter
from models.recipe.evaluate import PRECISION, ask, truth_of
from models.recipe.export import Defaults, build_pipeline
from models.recipe.questions import TRAINED, Question, choose_questions, whole_scope
from models.recipe.workdir import WorkDir

logger = logging.getLogger(__name__)

FACTOR = 3.0
"""How much more often a drawing is shown that the judge did not name first."""
SETTINGS = Defaults(step_count=10, guidance_scale=3.0, sampler="ddim")


def find_weak(work: WorkDir, settings: Defaults = SETTINGS) -> list[int]:
    """Write the places of all drawings that are not named first; returns them."""
    dataset = load_dataset(work.root)
    model = judge.load_judge(work, dataset)
    everything = whole_scope(dataset.concepts)
    count = len(dataset.concepts) * len(STYLES)
    questions = [
        question
        for question in choose_questions(dataset.concepts, everything, count)
        if question.kind == TRAINED and (question.concept_index, question.style) in dataset.places
    ]
    painter = Painter(build_pipeline(work)[0], settings, precision=PRECISION)
    answers = ask(painter, _on_backgrounds(questions))
    named = judge.logits_of(model, measures.as_tensor(answers.pictures)).argmax(1)
    wrong = (named != truth_of(dataset, questions)).tolist()
    weak = [
        dataset.places[question.concept_index, question.style]
        for question, missed in zip(questions, wrong, strict=True)
        if missed
    ]
    work.weak.write_text(json.dumps(weak))
    logger.info("%d of %d drawings are weak", len(weak), len(questions))
    return weak


def _on_backgrounds(questions: Sequence[Question]) -> list[Question]:
    """The same, each on a background of some colour but white."""
    coloured = [name for name in BACKGROUNDS if name != "white"]
    names = Random(0).choices(coloured, k=len(questions))
    return [
        replace(question, prompt=f"{question.prompt} on {article_for(name)} {name} background")
        for question, name in zip(questions, names, strict=True)
    ]


def read_emphasis(work: WorkDir) -> dict[int, float]:
    """The factor of every weak drawing; empty when none were looked for."""
    if not work.weak.exists():
        return {}
    return dict.fromkeys(json.loads(work.weak.read_text()), FACTOR)
