"""The evaluation: what it asks, and that its report holds every figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.recipe.card import write_card
from models.recipe.curve import append
from models.recipe.dataset import load_dataset
from models.recipe.drawing import SAMPLERS
from models.recipe.evaluate import Extent, evaluate
from models.recipe.export import Defaults, export
from models.recipe.heldout import COLOUR_CONCEPTS, held_out_pairs
from models.recipe.questions import COLOUR, HELD_OUT, TRAINED, Scope, choose_questions
from models.recipe.workdir import WorkDir
from tests.models.tiny import CONCEPTS, write_judge, write_work_dir

EVERYTHING = Scope(concept_indexes=tuple(range(len(CONCEPTS))), styles=("3d", "flat", "line"))


def test_questions_are_fixed_and_trained_ones_are_not_held_out() -> None:
    questions = choose_questions(CONCEPTS, EVERYTHING, 50)
    assert questions == choose_questions(CONCEPTS, EVERYTHING, 50)
    kept_back = held_out_pairs(CONCEPTS)
    pairs = {
        kind: [(q.concept_index, q.style) for q in questions if q.kind == kind]
        for kind in (TRAINED, HELD_OUT)
    }
    assert len(pairs[TRAINED]) == 50
    assert not set(pairs[TRAINED]) & kept_back
    assert set(pairs[HELD_OUT]) == kept_back


def test_colours_are_asked_of_what_was_never_seen_in_them() -> None:
    asked = [q for q in choose_questions(CONCEPTS, EVERYTHING, 1) if q.kind == COLOUR]
    assert len(asked) == 6 * len(COLOUR_CONCEPTS)
    assert "a blue apple" in {question.prompt for question in asked}
    for question in asked:
        assert question.colour != COLOUR_CONCEPTS[CONCEPTS[question.concept_index].label]


def test_a_model_is_asked_only_for_what_it_knows() -> None:
    scope = Scope(concept_indexes=(0, 1), styles=("3d",))
    asked = choose_questions(CONCEPTS, scope, 50)
    assert {(q.concept_index, q.style) for q in asked if q.kind == TRAINED} == {
        (0, "3d"),
        (1, "3d"),
    }
    assert not [q for q in asked if q.kind == HELD_OUT]
    assert {q.concept_index for q in asked if q.kind == COLOUR} == {0}


def test_the_report_holds_every_figure(tmp_path: Path) -> None:
    work = write_work_dir(tmp_path / "work", ((0, "3d"), (0, "flat"), (0, "line"), (1, "3d")))
    write_judge(work)
    target = tmp_path / "model"
    export(work, target, Defaults(step_count=1, guidance_scale=2.5))
    shrink_card(target)
    extent = Extent(question_count=2, sampler_question_count=1, step_counts=(2,), diversity_count=1)
    report = evaluate(work, target, None, extent)
    assert json.loads((target / "evaluation.json").read_text()) == report
    pictures = report["pictures"]
    assert isinstance(pictures, dict)
    assert {name.split(",")[0] for name in pictures} == {TRAINED, COLOUR}
    assert pictures["colour, 3d"]["count"] == 6
    assert {"colour", "named_and_colour", "style", "top5", "misses"} <= set(pictures["colour, 3d"])
    samplers = report["samplers"]
    assert isinstance(samplers, dict)
    assert set(samplers) == set(SAMPLERS)
    assert {path.stem for path in work.sheets.iterdir()} == {TRAINED, COLOUR}
    assert len(load_dataset(work.root).drawings) == 4
    check_card(target)


def check_card(target: Path) -> None:
    write_card(target)
    card = (target / "README.md").read_text()
    assert "| **drawn: colour, 3d** (6) |" in card
    assert "guidance_scale=2.5" in card
    report = json.loads((target / "evaluation.json").read_text())
    report["weights_sha256"] = "another"
    (target / "evaluation.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="other weights"):
        write_card(target)


def shrink_card(folder: Path) -> None:
    """Have the model say that it knows only the first concept, in all styles."""
    path = folder / "limner.json"
    card = json.loads(path.read_text())
    card["vocabulary"]["concepts"] = card["vocabulary"]["concepts"][:1]
    path.write_text(json.dumps(card))


def test_the_curve_is_appended_to(tmp_path: Path) -> None:
    for samples in (1, 2):
        append(tmp_path / "deep" / "curve.jsonl", {"samples": samples})
    lines = (tmp_path / "deep" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["samples"] for line in lines] == [1, 2]


@pytest.fixture
def work(tmp_path: Path) -> WorkDir:
    return WorkDir(root=tmp_path)


def test_a_work_dir_lists_chunks_and_snapshots_in_order(work: WorkDir) -> None:
    for path in (work.latents(1), work.latents(0), work.snapshot(200_000), work.snapshot(90_000)):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    work.latents(2).with_suffix(".partial.npz").touch()
    assert work.latent_chunks == [work.latents(0), work.latents(1)]
    assert work.snapshots == [work.snapshot(90_000), work.snapshot(200_000)]
