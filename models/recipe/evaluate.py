"""Stage 6: draw what was taught and what was held back, rate it, make the sheets.

Called by the command line after `export` and `judge`. Everything is drawn by the stock pipeline
from the folder at its recommended settings; seeds are fixed, nothing is picked. Writes
`evaluation.json` into that folder, the README's sheet and one with the truth beside what was drawn
into the documentation, and larger ones of that kind into the work folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.recipe import judge, measures, sheets
from models.recipe.captions import BACKGROUNDS, article_for
from models.recipe.dataset import Dataset, load_dataset
from models.recipe.drawing import SAMPLERS, Order, Painter
from models.recipe.export import weights_digest
from models.recipe.questions import (
    COLOUR,
    TRAINED,
    Question,
    choose_questions,
    read_scope,
)
from models.recipe.workdir import WorkDir

logger = logging.getLogger(__name__)

PRECISION = "bfloat16"
"""As the diffusion service computes on a CPU that can."""
QUESTION_COUNT = 300
SAMPLER_QUESTION_COUNT = 30
STEP_COUNTS = (4, 10, 20, 50)
DIVERSITY_COUNT = 60
SEED_COUNT = 4
PAGE_COUNT = 100
BACKGROUND_THINGS = ("a cat", "a rocket", "a house", "a guitar")
README_SHEET_MAX_BYTES = 400_000
TRUTH_SIDE, TRUTH_MAX_BYTES = 80, 500_000
README_PROMPTS = (
    *("a red apple", "a dog face", "a slice of pizza", "a rocket"),
    *("a house", "a guitar", "a smiling face", "a cat on a blue background"),
    *("a panda", "a fox", "an owl", "a unicorn"),
    *("an octopus", "a butterfly", "a penguin", "a turtle"),
    *("a strawberry on a yellow background", "a robot on a light blue background"),
    *("a rose on a pink background", "a castle on a purple background"),
    *("a hamburger on an orange background", "a ghost on a black background"),
    *("a sailboat on a green background", "a cactus"),
    *("a flat rocket", "a camera, flat style", "a cupcake, flat style", "a bicycle, flat style"),
    *("a tiger face, flat design", "a mushroom, flat style"),
    *("a flat house on a light blue background", "a snowman, flat style"),
)
"""Chosen before anything was drawn; always at seed 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """How much to draw. The default takes a GPU seconds and two CPU cores a quarter of an hour."""

    question_count: int = QUESTION_COUNT
    sampler_question_count: int = SAMPLER_QUESTION_COUNT
    step_counts: tuple[int, ...] = STEP_COUNTS
    diversity_count: int = DIVERSITY_COUNT


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Questions with what was drawn for them: uint8 [question, 128, 128, 3]."""

    questions: tuple[Question, ...]
    pictures: np.ndarray

    def of(self, kind: str, style: str | None = None) -> Answers:
        """Those of one kind, and of one style if it is given."""
        chosen = [
            index
            for index, question in enumerate(self.questions)
            if question.kind == kind and style in (None, question.style)
        ]
        return Answers(
            questions=tuple(self.questions[index] for index in chosen),
            pictures=self.pictures[chosen],
        )


def evaluate(
    work: WorkDir, folder: Path, docs: Path | None, extent: Extent | None = None
) -> dict[str, object]:
    """Measure the model in `folder`; returns what it wrote to `evaluation.json`.

    `docs` None leaves the README's sheet as it is.
    """
    extent = extent or Extent()
    painter = Painter.load(folder, precision=PRECISION)
    dataset = load_dataset(work.root)
    questions = choose_questions(dataset.concepts, read_scope(folder), extent.question_count)
    answers = ask(painter, questions)
    trained = answers.of(TRAINED).questions
    report: dict[str, object] = {
        "weights_sha256": weights_digest(folder),
        "settings": {**asdict(painter.settings), "precision": painter.precision},
        "concept_count": len(read_scope(folder).concept_indexes),
        "judge": _judge_report(work, dataset, answers),
        "pictures": rate_answers(work, dataset, answers),
        "distance": distances(work, dataset, answers),
        "samplers": rate_samplers(work, dataset, painter, trained, extent),
        "diversity": diversity(painter, trained[: extent.diversity_count]),
        "repeatability": repeatability(painter),
        "backgrounds": background_accuracy(painter),
    }
    make_sheets(work, painter, dataset, answers, docs)
    (folder / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    logger.info("%s", summary(report))
    return report


def ask(painter: Painter, questions: Sequence[Question]) -> Answers:
    """Draw every question at the painter's settings."""
    pictures = painter.draw([question.order for question in questions])
    return Answers(questions=tuple(questions), pictures=pictures)


def rate_answers(work: WorkDir, dataset: Dataset, answers: Answers) -> dict[str, dict[str, object]]:
    """The judge's verdict for each kind and style, with every miss by name."""
    model = judge.load_judge(work, dataset)
    groups = sorted({(question.kind, question.style) for question in answers.questions})
    return {
        f"{kind}, {style}": rate_group(model, dataset, answers.of(kind, style))
        for kind, style in groups
    }


def rate_group(model: judge.Judge, dataset: Dataset, answers: Answers) -> dict[str, object]:
    """One rating, and how often the style is right; where a colour was asked for, also the colour.

    The style is that of the drawing which the judge finds most likely.
    """
    names = [*(concept.label for concept in dataset.concepts), "none"]
    pictures = measures.as_tensor(answers.pictures)
    truth = truth_of(dataset, answers.questions)
    rating: dict[str, object] = asdict(judge.rate(model, pictures, truth))
    logits = judge.logits_of(model, pictures)
    best, named = logits.argmax(1), logits[:, :-1].argmax(1)
    misses = [
        {"prompt": question.prompt, "judged": names[guess]}
        for question, guess, right in zip(
            answers.questions, best.tolist(), truth.tolist(), strict=True
        )
        if guess != right
    ]
    styles = judge.styles_of(model, dataset, pictures)
    in_style = [a == q.style for a, q in zip(styles, answers.questions, strict=True)]
    rating["style"] = measures.share(in_style)
    if answers.questions and answers.questions[0].kind == COLOUR:
        seen = measures.thing_colours(answers.pictures)
        asked = [question.colour for question in answers.questions]
        coloured = [a == b for a, b in zip(seen, asked, strict=True)]
        both = [c and bool(n) for c, n in zip(coloured, named == truth, strict=True)]
        rating |= {"colour": measures.share(coloured), "named_and_colour": measures.share(both)}
    return {"count": len(answers.questions), **rating, "misses": misses}


def truth_of(dataset: Dataset, questions: Sequence[Question]) -> Tensor:
    """What the judge should say: a concept index for each question."""
    return torch.tensor([dataset.labels[place] for place in _drawings(dataset, questions)])


def _drawings(dataset: Dataset, questions: Sequence[Question]) -> list[int]:
    return [dataset.places[question.concept_index, question.style] for question in questions]


def _judge_report(work: WorkDir, dataset: Dataset, answers: Answers) -> dict[str, object]:
    ratings = judge.examine(work, _drawings(dataset, answers.of(TRAINED).questions))
    return {name: asdict(rating) for name, rating in ratings.items()}


def distances(work: WorkDir, dataset: Dataset, answers: Answers) -> dict[str, float]:
    """Fréchet distance in the judge's features to the originals of the same trained pairs.

    Beside it the same for originals through the autoencoder, which the model cannot beat.
    """
    model = judge.load_judge(work, dataset)
    trained = answers.of(TRAINED)
    originals = judge.unseen_views(dataset, _drawings(dataset, trained.questions))
    reference = judge.features_of(model, originals)
    versions = {
        "drawn": measures.as_tensor(trained.pictures),
        "originals through the autoencoder": judge.reconstruct(work, originals),
    }
    return {
        name: measures.frechet_distance(judge.features_of(model, pictures), reference)
        for name, pictures in versions.items()
    }


def rate_samplers(
    work: WorkDir,
    dataset: Dataset,
    painter: Painter,
    questions: Sequence[Question],
    extent: Extent,
) -> dict[str, dict[str, float]]:
    """Right first, for every sampler at every count of steps, on some of the trained pairs."""
    model = judge.load_judge(work, dataset)
    asked = questions[: extent.sampler_question_count]
    truth = truth_of(dataset, asked)
    orders = [question.order for question in asked]
    report: dict[str, dict[str, float]] = {}
    for name in SAMPLERS:
        report[name] = {}
        for step_count in extent.step_counts:
            settings = replace(painter.settings, sampler=name, step_count=step_count)
            pictures = measures.as_tensor(painter.draw(orders, settings))
            report[name][str(step_count)] = judge.rate(model, pictures, truth).top1
    return report


def diversity(painter: Painter, questions: Sequence[Question]) -> dict[str, object]:
    """How much seeds differ: root mean square of 8-bit pixels, over all pairs of `SEED_COUNT`.

    Mean and least over prompts.
    """
    drawn = [
        painter.draw([Order(prompt=question.prompt, seed=seed) for question in questions])
        for seed in range(SEED_COUNT)
    ]
    apart = np.mean([measures.rms_difference(*pair) for pair in combinations(drawn, 2)], axis=0)
    least = int(apart.argmin())
    return {
        "seed_count": SEED_COUNT,
        "rms_mean": round(float(apart.mean()), 2),
        "rms_least": round(float(apart[least]), 2),
        "least_diverse": questions[least].prompt,
    }


def repeatability(painter: Painter) -> dict[str, object]:
    """Whether the same prompt and seed give the same picture again, and in a batch."""
    order = Order(prompt="a red apple", seed=3)
    others = [Order(prompt=f"a {name}", seed=i) for i, name in enumerate(("dog", "cat", "house"))]
    alone, again = painter.draw([order]), painter.draw([order])
    beside = painter.draw([*others, order])[-1:]
    difference = np.abs(alone.astype(np.int16) - beside.astype(np.int16))
    return {
        "same_seed_identical": bool((alone == again).all()),
        "alone_or_in_a_batch_max_difference": int(difference.max()),
    }


def background_accuracy(painter: Painter) -> dict[str, object]:
    """Corners of pictures that were asked for on a colour, against that colour."""
    names = list(BACKGROUNDS)
    asked = [name for name in names for _ in BACKGROUND_THINGS]
    orders = [
        Order(prompt=f"{thing} on {article_for(name)} {name} background", seed=0)
        for name in names
        for thing in BACKGROUND_THINGS
    ]
    seen = measures.corner_colours(painter.draw(orders))
    palette = np.array(list(BACKGROUNDS.values()), dtype=np.float64)
    nearest = np.linalg.norm(seen[:, None] - palette, axis=2).argmin(1)
    errors = np.abs(seen - palette[[names.index(name) for name in asked]]).mean(1)
    wrong = [
        order.prompt
        for order, name, index in zip(orders, asked, nearest, strict=True)
        if names[index] != name
    ]
    return {
        "prompt_count": len(orders),
        "right_share": round(1.0 - len(wrong) / len(orders), 4),
        "mean_error_8bit": round(float(errors.mean()), 2),
        "wrong": wrong,
    }


def make_sheets(
    work: WorkDir, painter: Painter, dataset: Dataset, answers: Answers, docs: Path | None
) -> None:
    """The README's sheet, and pages with the truth beside what was drawn."""
    if docs is not None:
        chosen = painter.draw([Order(prompt=prompt, seed=0) for prompt in README_PROMPTS])
        page = sheets.contact_sheet(list(chosen), 8, captions=README_PROMPTS)
        sheets.save_png(page, docs / "contact-sheet.png", README_SHEET_MAX_BYTES)
        tiles = _beside_originals(dataset, answers.of(TRAINED))
        page = sheets.contact_sheet(tiles, 20, side=TRUTH_SIDE)
        sheets.save_webp(page, docs / "truth.webp", TRUTH_MAX_BYTES)
    for kind in sorted({question.kind for question in answers.questions}):
        truth_page(dataset, answers.of(kind), work.sheets / f"{kind.replace(' ', '-')}.png")


def truth_page(dataset: Dataset, answers: Answers, path: Path) -> None:
    """Up to a hundred pictures, each right of its original."""
    tiles = _beside_originals(dataset, answers)
    captions = [text for q in answers.questions[:PAGE_COUNT] for text in ("original", q.prompt)]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheets.contact_sheet(tiles, 20, captions=captions).save(path)


def _beside_originals(dataset: Dataset, answers: Answers) -> list[np.ndarray]:
    """Originals and pictures in turns, up to a hundred of each."""
    originals = judge.unseen_views(dataset, _drawings(dataset, answers.questions))
    pairs = list(zip(measures.as_bytes(originals), answers.pictures, strict=True))[:PAGE_COUNT]
    return [tile for pair in pairs for tile in pair]


def summary(report: dict[str, object]) -> str:
    """The report as a short table for people."""
    columns = ("top1", "top1_of_concepts", "top5", "none")
    lines = [f"{'':28}{'top-1':>8}{'named':>8}{'top-5':>8}{'none':>8}"]
    for part in ("judge", "pictures"):
        ratings = report[part]
        assert isinstance(ratings, dict)
        for name, values in ratings.items():
            shares = "".join(f"{values[key]:8.1%}" for key in columns)
            colour = f"  colour {values['colour']:.1%}" if "colour" in values else ""
            style = f"  style {values['style']:.1%}" if "style" in values else ""
            lines.append(f"{name:28}{shares}{style}{colour}")
    for part in ("distance", "samplers", "diversity", "repeatability", "backgrounds"):
        lines.append(f"{part}: {report[part]}")
    return "\n".join(lines)
