"""The training loop: budgets, rates, checkpoints, and a resume that changes nothing."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.recipe.loop import LossFunction, train
from models.recipe.plan import Plan
from models.recipe.state import load_ema
from tests.models.tiny import WORKER

PLAN = Plan(learning_rate=1e-2, step_count=40, warmup_steps=5)


def toy() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"toy": nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))}


def toy_loss(modules: dict[str, nn.Module], *, stop_at: int = 0) -> LossFunction:
    """Sum of three numbers; sends SIGTERM to this process during call `stop_at`, counted from 1."""
    calls = 0

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(16, 3, generator=generator)
        error = (modules["toy"](x)[:, 0] - x.sum(1)).square().mean()
        return error, {"error": error}

    return loss


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, muon=True)], ids=["adamw", "muon"])
def test_a_run_cut_off_by_sigterm_ends_bit_identical(tmp_path: Path, plan: Plan) -> None:
    whole = toy()
    expected = train(whole, toy_loss(whole), plan, tmp_path / "whole.safetensors", WORKER)

    before, checkpoint = toy(), tmp_path / "cut.safetensors"
    with pytest.raises(SystemExit) as stopped:
        train(before, toy_loss(before, stop_at=13), plan, checkpoint, WORKER)
    assert stopped.value.code == 143
    after = toy()
    resumed = train(after, toy_loss(after), plan, checkpoint, WORKER)

    assert resumed.step == expected.step == 40
    for key, parameter in expected.parameters.items():
        assert torch.equal(parameter, resumed.parameters[key])
        assert torch.equal(expected.ema[key], resumed.ema[key])
        moments, again = (
            next(o.state[s.parameters[key]] for o in s.optimizers if s.parameters[key] in o.state)
            for s in (expected, resumed)
        )
        for name in moments.keys() - {"step"}:
            assert torch.equal(moments[name], again[name])


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    modules, checkpoint = toy(), tmp_path / "done.safetensors"
    train(modules, toy_loss(modules), PLAN, checkpoint, WORKER)
    again, written = toy(), checkpoint.stat().st_mtime_ns
    state = train(again, toy_loss(again, stop_at=1), PLAN, checkpoint, WORKER)
    assert state.step == 40
    assert checkpoint.stat().st_mtime_ns == written
    assert torch.equal(
        again["toy"].state_dict()["0.weight"], modules["toy"].state_dict()["0.weight"]
    )


def test_a_run_goes_on_with_another_optimizer(tmp_path: Path) -> None:
    modules, checkpoint = toy(), tmp_path / "run.safetensors"
    train(modules, toy_loss(modules), PLAN, checkpoint, WORKER)
    longer = replace(PLAN, step_count=60, muon=True)
    assert train(toy(), toy_loss(modules), longer, checkpoint, WORKER).step == 60


def test_training_lowers_the_loss_and_the_average_follows(tmp_path: Path) -> None:
    modules, checkpoint = toy(), tmp_path / "run.safetensors"
    probe = toy_loss(modules)
    start = float(probe(torch.Generator().manual_seed(1))[0].detach())
    train(modules, toy_loss(modules), PLAN, checkpoint, WORKER)
    assert load_ema(checkpoint, modules) == 40
    assert float(probe(torch.Generator().manual_seed(1))[0].detach()) < 0.8 * start


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    modules, checkpoint = toy(), tmp_path / "run.safetensors"
    train(modules, toy_loss(modules), PLAN, checkpoint, WORKER)
    other: dict[str, nn.Module] = {"other": nn.Linear(3, 1)}
    with pytest.raises(Exception, match=r"other\.weight"):
        train(other, toy_loss(modules), PLAN, checkpoint, WORKER)


@pytest.mark.parametrize("budgets", [{}, {"step_count": 1, "budget_s": 1.0}])
def test_a_plan_has_exactly_one_budget(budgets: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Plan(learning_rate=1.0, **budgets)  # type: ignore[arg-type]


def test_the_rate_may_stay_at_its_peak_until_the_cooldown() -> None:
    plan = Plan(learning_rate=1.0, step_count=100, warmup_steps=10, cooldown=0.2)
    assert plan.rate(50, 0.5) == plan.rate(80, 0.8) == 1.0
    assert plan.rate(90, 0.9) == pytest.approx(0.51)
    assert plan.rate(100, 1.0) == pytest.approx(0.02)


def test_a_watcher_is_called_at_every_so_many_steps(tmp_path: Path) -> None:
    modules, seen = toy(), []
    plan = Plan(learning_rate=1e-2, step_count=9, watch_every=4)
    train(
        modules,
        toy_loss(modules),
        plan,
        tmp_path / "run.safetensors",
        WORKER,
        lambda state: seen.append(state.step),
    )
    assert seen == [4, 8]


def test_the_rate_warms_up_and_falls_to_its_end() -> None:
    plan = Plan(learning_rate=1.0, step_count=100, warmup_steps=10, final_rate=0.02)
    assert plan.rate(0, 0.0) == pytest.approx(0.1)
    assert plan.rate(9, 0.0) == pytest.approx(1.0)
    assert plan.rate(50, 0.5) == pytest.approx(0.51)
    assert plan.rate(99, 1.0) == pytest.approx(0.02)
