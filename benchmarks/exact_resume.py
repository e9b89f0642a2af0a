"""Training runs that are interrupted at random steps, against one that is not: the same bits?

    python -m benchmarks.exact_resume
    python -m benchmarks.exact_resume --processes 2
    python -m benchmarks.exact_resume --method full --interruptions 6

Every run is the service's command on the embedded model, with prior preservation, accumulation,
dropout, EMA and caption dropout on. One goes through. Another is ended `--interruptions` times, by
SIGTERM and SIGKILL in turn, each at a random step; a kill loses what came after the last
checkpoint. Compared are SHA-256 of the loss curve, of the full state at the end (weights, moments,
average) and of the weights that come out. Exits with 1 where any differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.personalisation.subject import CLASS_PROMPT, INSTANCE_PROMPT, write_photographs
from benchmarks.report import json_line, table

_BASE = Path("models/limner-emoji")
_CHECKPOINT_INTERVAL = 5
_EXIT_STOPPED = 143
_FILES = {
    "loss curve": "losses.jsonl",
    "full state": "checkpoints/last.safetensors",
    "unet": "result/model/unet/diffusion_pytorch_model.safetensors",
    "text encoder": "result/model/text_encoder/model.safetensors",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Interruption:
    """One end of the run."""

    signal: str
    step: int
    """Steps that the loss curve had when the signal went out."""
    exit_code: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and compare; returns the exit code."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        photographs = write_photographs(work / "photographs")
        folders = {name: work / name for name in ("whole", "interrupted")}
        for name, folder in folders.items():
            content = _tree(options, photographs, folder)
            (work / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        with _started(work / "whole.yaml") as process:
            assert process.wait() == 0, "the uninterrupted run failed"
        done = _interrupt(work / "interrupted.yaml", folders["interrupted"], options)
        # Otherwise the code changed in the meantime, and nothing is compared.
        first, second = (_fingerprint(folder) for folder in folders.values())
        assert first == second, "the two runs did not have the same resolved configuration"
        digests = {name: _digests(folder) for name, folder in folders.items()}
    equal = {part: digests["whole"][part] == digests["interrupted"][part] for part in _FILES}
    print(
        table(["signal", "at step", "exit code"], [[i.signal, i.step, i.exit_code] for i in done])
    )
    print()
    rows = [[p, *(digests[n][p][:16] for n in folders), str(equal[p])] for p in _FILES]
    print(table(["", "uninterrupted", "interrupted", "equal"], rows))
    results = {
        "method": options.method,
        "process_count": options.processes,
        "step_count": options.step_count,
        "interruptions": len(done),
        "signals": [[each.signal, each.step] for each in done],
        "equal": equal,
    }
    print(json_line("exact_resume", results))
    return 0 if all(equal.values()) else 1


def _interrupt(
    configuration: Path, folder: Path, options: argparse.Namespace
) -> list[Interruption]:
    """Start, end and start again until the run is through."""
    numbers = random.Random(options.seed)
    kinds = [signal.SIGTERM, signal.SIGKILL] * options.interruptions
    done: list[Interruption] = []
    for index in range(options.interruptions):
        # Even steps for those that are left, at random places.
        left = options.step_count - _line_count(folder) - 2
        ahead = max(1, 2 * left // (options.interruptions - index + 1))
        wanted = _line_count(folder) + numbers.randint(1, ahead)
        with _started(configuration) as process:
            _await_step(process, folder, wanted)
            process.send_signal(kinds[index])
            code = process.wait()
        expected = _EXIT_STOPPED if kinds[index] == signal.SIGTERM else -signal.SIGKILL
        assert code == expected, f"ended with {code}, not {expected}"
        name = signal.Signals(kinds[index]).name
        done.append(Interruption(signal=name, step=_line_count(folder), exit_code=code))
        print(f"{index + 1}: {name} at step {done[-1].step}", file=sys.stderr, flush=True)
    with _started(configuration) as process:
        assert process.wait() == 0, "the interrupted run failed in the end"
    return done


def _await_step(process: subprocess.Popen[bytes], folder: Path, step: int) -> None:
    """Wait until the process has written line `step` of the loss curve itself."""
    before = (folder / "losses.jsonl").stat().st_mtime_ns if _line_count(folder) else 0
    while True:
        assert process.poll() is None, f"ended by itself with {process.returncode}"
        path = folder / "losses.jsonl"
        if _line_count(folder) >= step and path.stat().st_mtime_ns != before:
            return
        time.sleep(0.02)


def _line_count(folder: Path) -> int:
    path = folder / "losses.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@contextmanager
def _started(configuration: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-W", "ignore", "-m", "services.trainer.run", str(configuration)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = configuration.with_suffix(".log")
    with (
        log.open("ab") as file,
        subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process,
    ):
        try:
            yield process
        except AssertionError:
            process.kill()
            print(log.read_text(encoding="utf-8", errors="replace")[-4000:], file=sys.stderr)
            raise


def _fingerprint(folder: Path) -> str:
    facts = json.loads((folder / "result" / "run.json").read_text(encoding="utf-8"))
    return str(facts["fingerprint"])


def _digests(folder: Path) -> dict[str, str]:
    return {
        part: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for part, name in _FILES.items()
    }


def _tree(options: argparse.Namespace, photographs: Path, output: Path) -> dict[str, Any]:
    content: dict[str, Any] = {
        "base_model": str(_BASE),
        "output": str(output),
        "class_image_cache": str(output.parent / "class-images"),
        "method": options.method,
        "instance": {"images": str(photographs), "prompt": INSTANCE_PROMPT, "captions": True},
        "prior": {"prompt": CLASS_PROMPT, "image_count": 4, "step_count": 4},
        "optimization": {
            "step_count": options.step_count,
            "accumulation": 2,
            "batch_size": 1,
            "ema_decay": 0.99,
            "min_snr_gamma": 5.0,
            "schedule": "cosine",
        },
        "pictures": {"caption_dropout": 0.1},
        "validation": {"interval": 0, "step_count": 2},
        "tracking": {"tensorboard": False},
        "checkpoint_interval": _CHECKPOINT_INTERVAL,
        "device": {"accelerator": "cpu", "process_count": options.processes},
    }
    if options.method == "lora":
        content["lora"] = {"dropout": 0.1}
    return content


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.exact_resume", description=__doc__)
    parser.add_argument("--method", choices=["lora", "full"], default="lora")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--interruptions", type=int, default=20)
    parser.add_argument("--step-count", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
