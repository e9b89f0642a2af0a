"""What is held out is painted from the same thing's other styles, and never looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.recipe import stages
from models.recipe.dataset import POSES, Dataset
from models.recipe.heldout import held_out_pairs
from models.recipe.translator import (
    Translator,
    as_view,
    complete,
    shown_views,
    translator_loss,
)
from models.recipe.workdir import WorkDir
from tests.models.tiny import CONCEPTS, WORKER, write_completions, write_views, write_work_dir

CPU = stages.Machine(device=torch.device("cpu"))
HELD_OUT = min(pair for pair in held_out_pairs(CONCEPTS) if pair[1] == "flat")
DRAWINGS = (
    *((0, "3d"), (0, "flat"), (0, "line")),
    *((HELD_OUT[0], "3d"), HELD_OUT, (HELD_OUT[0], "line")),
)


def test_an_untrained_translator_gives_the_style_most_alike_or_an_empty_page() -> None:
    views = torch.rand(3, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    painted = Translator()(views, torch.tensor([0, 1, 2]))
    assert torch.equal(painted[0], views[0, 1])
    assert torch.equal(painted[1], views[1, 0])
    assert torch.equal(painted[2], torch.zeros(4, 32, 32))


def test_the_drawing_to_paint_is_not_looked_at_but_the_others_are() -> None:
    generator = torch.Generator().manual_seed(0)
    model = Translator()
    torch.nn.init.normal_(model.out.weight, generator=generator)
    views = torch.rand(1, 3, 4, 32, 32, generator=generator)
    painted = model(views, torch.tensor([1]))
    for style, looked_at in enumerate((True, False, True)):
        changed = views.clone()
        changed[:, style] = 0.25
        assert torch.equal(model(changed, torch.tensor([1])), painted) is not looked_at


def test_it_learns_how_styles_differ(tmp_path: Path) -> None:
    dataset = write_views(tmp_path, DRAWINGS[:3])
    torch.manual_seed(0)
    model = Translator()
    loss = translator_loss(model, dataset, 3, torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    values = []
    for _ in range(40):
        value, _ = loss(torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.5 * values[0]


def test_what_is_held_out_is_never_learnt_from(tmp_path: Path) -> None:
    work, dataset = WorkDir(root=tmp_path), write_views(tmp_path, DRAWINGS)
    torch.manual_seed(0)
    model = Translator()
    torch.nn.init.normal_(model.out.weight, std=0.1)
    complete(model, dataset, work, WORKER)
    place = dataset.places[HELD_OUT]
    before = [shown_views(dataset, work)(place, pose) for pose in range(len(POSES))]
    assert not np.array_equal(before[0], dataset.views[place, 0])
    views = dataset.views.copy()
    views[place] = 17
    changed = Dataset(concepts=dataset.concepts, drawings=dataset.drawings, views=views)
    complete(model, changed, work, WORKER)
    after = [shown_views(changed, work)(place, pose) for pose in range(len(POSES))]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    first = shown_views(changed, work)(0, 3)
    assert np.array_equal(first, dataset.views[0, 3])


def test_without_completions_nothing_is_encoded(tmp_path: Path) -> None:
    work, dataset = WorkDir(root=tmp_path), write_views(tmp_path, DRAWINGS)
    with pytest.raises(FileNotFoundError):
        shown_views(dataset, work)
    write_completions(work, write_views(tmp_path, DRAWINGS[:3]))
    with pytest.raises(ValueError, match="other drawings"):
        shown_views(dataset, work)


def test_colour_never_exceeds_opacity_and_lines_are_black() -> None:
    painted = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    flat, line = as_view(painted, "flat"), as_view(painted, "line")
    assert (flat[:, :3] <= flat[:, 3:]).all()
    assert (line[:, :3] == 0).all()
    half_sure = torch.tensor([0.3, 0.5, 0.7]).expand(1, 4, 1, 3)
    assert as_view(half_sure, "line")[0, 3, 0].tolist() == [0, 128, 255]


def test_the_stage_trains_and_paints_what_is_held_out(tmp_path: Path) -> None:
    work = write_work_dir(tmp_path, DRAWINGS)
    work.completions.unlink()
    stages.complete_styles(work.root, CPU, 1e-6)
    assert work.translator.exists()
    with np.load(work.completions) as file:
        assert file["drawings"].tolist() == [DRAWINGS.index(HELD_OUT)]
        assert file["views"].shape == (1, len(POSES), 4, 128, 128)
    painted = work.completions.stat().st_mtime_ns
    stages.complete_styles(work.root, CPU, 1e-6)
    assert work.completions.stat().st_mtime_ns == painted, "what is done is not done again"
