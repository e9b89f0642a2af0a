"""The runs of the benchmark: both methods, with prior preservation and without.

Each is the service's own command in a process of its own, with the defaults of family and method.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.personalisation.subject import CLASS_PROMPT, INSTANCE_PROMPT, TOKEN

# They are drawn anew on every machine, and the embedded model draws its robots much alike.
_CLASS_PICTURE_COUNT = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One way to train."""

    method: str
    prior: bool

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.method}, {'with' if self.prior else 'without'} prior preservation"


CASES = tuple(
    Case(method=method, prior=prior) for method in ("lora", "full") for prior in (True, False)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What came of a case."""

    case: Case
    model: Path
    seconds: float


def train(case: Case, base: Path, photographs: Path, work: Path, step_count: int | None) -> Trained:
    """Train, or take what is there. Raises `CalledProcessError` for a run that failed."""
    output = work / f"{case.method}-{'prior' if case.prior else 'plain'}"
    content = _tree(case, base, photographs, work, output)
    if step_count is not None:
        content["optimization"] = {"step_count": step_count}
    configuration = work / f"{output.name}.yaml"
    configuration.write_text(yaml.safe_dump(content), encoding="utf-8")
    started_at = time.perf_counter()
    command = [sys.executable, "-m", "services.trainer.run", str(configuration)]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - started_at
    return Trained(case=case, model=output / "result" / "model", seconds=seconds)


def _tree(case: Case, base: Path, photographs: Path, work: Path, output: Path) -> dict[str, Any]:
    content: dict[str, Any] = {
        "base_model": str(base),
        "output": str(output),
        "class_image_cache": str(work / "class-images"),
        "method": case.method,
        "instance": {
            "images": str(photographs),
            "prompt": INSTANCE_PROMPT,
            "token": TOKEN,
            "captions": True,
        },
        "tracking": {"tensorboard": False},
        "validation": {"interval": 0, "prompts": [INSTANCE_PROMPT]},
        "checkpoint_interval": 0,
    }
    if case.prior:
        content["prior"] = {"prompt": CLASS_PROMPT, "image_count": _CLASS_PICTURE_COUNT}
    return content
