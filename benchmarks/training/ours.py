"""Limner's own training, entered where the service's command enters it, and left after some steps.

Nothing is left out of a step: Lightning, deterministic algorithms, loss curve and status file. The
run is left by an exception before its first checkpoint, which would write up to 10 GiB.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.training.case import Case, Workload
from services.trainer.run.reading import check_run
from services.trainer.run.reporting import RunReport, StepLosses
from services.trainer.run.stopping import StopFlag
from services.trainer.run.training import train


class _EnoughError(Exception):
    """All steps are done."""


class _Listener(RunReport):
    """Calls back after every step."""

    def __init__(self, folder: Path, after_step: Callable[[int], bool]) -> None:
        super().__init__(folder)
        self._after_step = after_step

    def losses(self, losses: StepLosses) -> None:
        super().losses(losses)
        if not self._after_step(losses.step):
            raise _EnoughError


class _NoSignals(StopFlag):
    def listen(self) -> None:
        pass


def run_steps(
    case: Case,
    workload: Workload,
    base: Path,
    photographs: Path,
    classes: Path,
    output: Path,
    after_step: Callable[[int], bool],
) -> None:
    """Train until `after_step`, called with the number of steps done, returns False."""
    checked = check_run(_tree(case, workload, base, photographs, classes, output))
    output.mkdir(parents=True, exist_ok=True)
    try:
        train(checked, report=_Listener(output, after_step), stop=_NoSignals())
    except _EnoughError:
        return


def _tree(
    case: Case, workload: Workload, base: Path, photographs: Path, classes: Path, output: Path
) -> dict[str, Any]:
    optimization = {
        "step_count": 1000,
        "batch_size": 1,
        "learning_rate": workload.learning_rate,
        "precision": case.precision,
        "gradient_checkpointing": case.gradient_checkpointing,
        "train_text_encoder": case.train_text_encoder,
        "cache_text_embeddings": case.cached and not case.train_text_encoder,
    }
    content: dict[str, Any] = {
        "base_model": str(base),
        "output": str(output),
        "method": case.method,
        "instance": {"images": str(photographs), "prompt": "a photo of sks dog"},
        "prior": {"prompt": "a photo of a dog", "images": str(classes)},
        "pictures": {
            "side": workload.side,
            "flip_probability": 0.0,
            "cache_latents": case.cached,
        },
        "optimization": optimization,
        "validation": {"interval": 0},
        "tracking": {"tensorboard": False},
        "checkpoint_interval": 0,
        "device": {"accelerator": "cpu"},
    }
    if case.method == "lora":
        content["lora"] = {"rank": workload.rank, "alpha": workload.rank}
    return content
