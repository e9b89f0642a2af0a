"""DreamBooth on the embedded model: four pictures of a toy, both methods, prior on and off.

    python -m benchmarks.personalisation
    python -m benchmarks.personalisation --sheet docs/personalisation.webp
    python -m benchmarks.personalisation --step-count 20 --work /tmp/work     # a smoke run

Trains with the service's own command at its defaults, draws the same prompts and seeds with every
model at the settings of the base's card, and scores them (see `judging`): the subject, and the
subject where a prompt without the token asks for its class (`bleed`); how like the base's own
pictures those of the class and of other things stay; and, where the recipe's judge was trained on
this machine, how often it names the right thing. Runs that are in `--work` are not repeated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from benchmarks.personalisation.judging import Scorer
from benchmarks.personalisation.painting import Painter
from benchmarks.personalisation.prompts import Order, orders, population
from benchmarks.personalisation.runs import CASES, train
from benchmarks.personalisation.sheet import write_sheet
from benchmarks.personalisation.subject import Pixels, write_photographs
from benchmarks.report import json_line, table
from models.recipe import judge
from models.recipe.captions import strip_article
from models.recipe.dataset import load_dataset
from models.recipe.workdir import WorkDir

_BASE = Path("models/limner-emoji")
# Unlike those of the pictures that are scored.
_POPULATION_SEED = 7

Verdict = Callable[[Sequence[Pixels], Sequence[Order]], list[bool]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, draw, score, print."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        photographs = write_photographs(work / "photographs")
        wanted = orders()
        base = Painter(_BASE, _BASE)
        scorer = Scorer(_draw_population(base))
        verdict = _verdict(options.judge)
        pictures = {"base model": _draw(base, wanted)}
        figures = {"base model": _score(scorer, verdict, wanted, pictures, "base model")}
        for case in CASES:
            trained = train(case, _BASE, photographs, work, options.step_count)
            painter = Painter(trained.model, _BASE)
            pictures[case.name] = _draw(painter, wanted)
            figures[case.name] = _score(scorer, verdict, wanted, pictures, case.name)
            figures[case.name]["seconds"] = round(trained.seconds, 1)
    print(_table(figures))
    if options.sheet is not None:
        write_sheet(options.sheet, wanted, pictures)
    print(json_line("personalisation", figures))


def _draw(painter: Painter, wanted: Sequence[Order]) -> list[Pixels]:
    return painter.draw((each.prompt, each.seed) for each in wanted)


def _draw_population(base: Painter) -> dict[str, list[Pixels]]:
    return {
        background: base.draw((prompt, _POPULATION_SEED) for prompt in prompts)
        for background, prompts in population().items()
    }


def _score(
    scorer: Scorer,
    verdict: Verdict | None,
    wanted: Sequence[Order],
    pictures: Mapping[str, Sequence[Pixels]],
    name: str,
) -> dict[str, float]:
    figures: dict[str, float] = {}
    rows = list(zip(wanted, pictures[name], pictures["base model"], strict=True))
    for group, members in groupby(rows, key=lambda row: row[0].group):
        found = list(members)
        if group != "other":
            figures["subject" if group == "subject" else "bleed"] = mean(
                scorer.subject(picture, order.background) for order, picture, _ in found
            )
        if group != "subject":
            figures[f"{group}_likeness"] = mean(
                scorer.likeness(picture, own, order.background) for order, picture, own in found
            )
            if verdict is not None:
                right = verdict([row[1] for row in found], [row[0] for row in found])
                figures[f"{group}_named"] = mean(right)
    return {key: round(value, 3) for key, value in figures.items()}


def _verdict(folder: Path) -> Verdict | None:
    """What the recipe's judge calls a picture if it has to be something; None without a judge."""
    work = WorkDir(root=folder)
    if not work.judge.exists():
        print(f"without the recipe's judge: there is no {work.judge}", file=sys.stderr)
        return None
    dataset = load_dataset(folder)
    model = judge.load_judge(work, dataset)
    concepts = [strip_article(concept.phrase) for concept in dataset.concepts]

    def verdict(pictures: Sequence[Pixels], wanted: Sequence[Order]) -> list[bool]:
        batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        logits = judge.logits_of(model, batch)[:, :-1]  # the last is `none`
        named = [concepts[index] for index in logits.argmax(1).tolist()]
        return [name == order.concept for name, order in zip(named, wanted, strict=True)]

    return verdict


def _table(figures: Mapping[str, Mapping[str, float]]) -> str:
    keys = list(dict.fromkeys(key for row in figures.values() for key in row))
    header = ["model", *(key.replace("_", " ") for key in keys)]
    rows = [
        [name, *(f"{row[key]:.2f}" if key in row else "–" for key in keys)]
        for name, row in figures.items()
    ]
    return table(header, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.personalisation", description=__doc__)
    parser.add_argument("--work", type=Path, help="keep the runs here, and take those that are")
    parser.add_argument("--sheet", type=Path, help="write the picture table there, as WebP")
    parser.add_argument("--judge", type=Path, default=Path(".cache/emoji-2"))
    parser.add_argument("--step-count", type=int, help="instead of the defaults")
    return parser


if __name__ == "__main__":
    main()
