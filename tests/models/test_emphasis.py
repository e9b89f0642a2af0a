"""Weak drawings: what the judge does not name is found, kept, and shown more often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.recipe import emphasis, evaluate, judge
from models.recipe.drawing import Painter
from models.recipe.emphasis import FACTOR, find_weak, read_emphasis
from models.recipe.evaluate import Answers
from models.recipe.questions import Question
from tests.models.tiny import CONCEPTS, write_judge, write_work_dir


def test_what_the_judge_does_not_name_is_emphasized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = write_work_dir(tmp_path)
    write_judge(work)
    assert read_emphasis(work) == {}

    def sees_the_second_thing(model: judge.Judge, pictures_B3HW: Tensor) -> Tensor:
        del model
        return torch.eye(len(CONCEPTS) + 1)[1].expand(len(pictures_B3HW), -1)

    asked: list[str] = []

    def ask(painter: Painter, questions: Sequence[Question]) -> Answers:
        asked.extend(question.prompt for question in questions)
        return evaluate.ask(painter, questions)

    monkeypatch.setattr(judge, "logits_of", sees_the_second_thing)
    monkeypatch.setattr(emphasis, "ask", ask)
    weak = find_weak(work, replace(emphasis.SETTINGS, step_count=1))
    assert sorted(weak) == [0, 1]
    assert all(prompt.endswith(" background") for prompt in asked)
    assert not any("white" in prompt for prompt in asked)
    assert read_emphasis(work) == {0: FACTOR, 1: FACTOR}
