"""The run as a process of its own: signals, sudden death, exit codes, several processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.run.runs import digest, run_to_end, tree, write_yaml

pytestmark = pytest.mark.timeout(600)

# Long enough that a signal comes in the middle, also on a machine that is fast.
_STEPS: dict[str, Any] = {"optimization": {"step_count": 30}, "checkpoint_interval": 7}


def _start(configuration: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "services.trainer.run", str(configuration), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> int:
    output, _ = process.communicate(timeout=500)
    print(output)
    return process.returncode


def _await_lines(process: subprocess.Popen[str], output: Path, count: int) -> None:
    path = output / "losses.jsonl"
    while process.poll() is None:
        if path.is_file() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"ended too early: {_end(process)}")


def test_sigterm_and_sudden_death_leave_a_run_that_ends_bit_identical(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    # Processes of their own throughout: this one's thread count is whatever other tests left.
    whole = tree(plain_model, photos, tmp_path / "whole", **_STEPS)
    assert _end(_start(write_yaml(tmp_path / "whole.yaml", whole))) == 0
    output = tmp_path / "parts"
    configuration = write_yaml(tmp_path / "run.yaml", tree(plain_model, photos, output, **_STEPS))

    killed = _start(configuration)
    _await_lines(killed, output, 8)
    killed.kill()
    assert _end(killed) == -signal.SIGKILL

    stopped = _start(configuration)
    _await_lines(stopped, output, 12)
    stopped.terminate()
    assert _end(stopped) == 143
    status = json.loads((output / "status.json").read_text())
    assert status["state"] == "stopped"
    assert status["step"] < 30

    assert _end(_start(configuration)) == 0
    assert digest(output) == digest(tmp_path / "whole")


def test_two_processes_learn_what_one_learns_from_both_batches(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    plain = {"lora": {"dropout": 0.0}}
    single = {**plain, "optimization": {"batch_size": 2}}
    double = {**plain, "device": {"accelerator": "cpu", "process_count": 2}}
    run_to_end(tree(plain_model, photos, tmp_path / "single", **single))
    configuration = write_yaml(
        tmp_path / "run.yaml", tree(plain_model, photos, tmp_path / "double", **double)
    )
    assert _end(_start(configuration)) == 0
    one = load_file(tmp_path / "single" / "checkpoints" / "last.safetensors")
    two = load_file(tmp_path / "double" / "checkpoints" / "last.safetensors")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-2)


def test_bad_configuration_ends_with_42_and_a_check_computes_nothing(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    good = tree(plain_model, photos, tmp_path / "run")
    bad = write_yaml(tmp_path / "bad.yaml", good | {"surprise": 1, "method": "magic"})
    refused = subprocess.run(
        [sys.executable, "-m", "services.trainer.run", str(bad)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 42
    assert "surprise: is not a setting" in refused.stderr
    assert "method: Input should be 'lora' or 'full'" in refused.stderr
    assert _end(_start(write_yaml(tmp_path / "good.yaml", good), "--check")) == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.soak
def test_two_processes_stopped_and_resumed_end_bit_identical(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    double = {**_STEPS, "device": {"accelerator": "cpu", "process_count": 2}}
    for name in ("whole", "parts"):
        write_yaml(tmp_path / f"{name}.yaml", tree(plain_model, photos, tmp_path / name, **double))
    assert _end(_start(tmp_path / "whole.yaml")) == 0
    stopped = _start(tmp_path / "parts.yaml")
    _await_lines(stopped, tmp_path / "parts", 10)
    stopped.terminate()
    assert _end(stopped) == 143
    assert _end(_start(tmp_path / "parts.yaml")) == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


@pytest.mark.soak
def test_two_nodes_learn_what_two_processes_learn(
    plain_model: Path, photos: Path, tmp_path: Path
) -> None:
    shapes = {"processes": {"process_count": 2}, "nodes": {"node_count": 2}}
    for name, shape in shapes.items():
        device = {"device": {"accelerator": "cpu", **shape}}
        write_yaml(tmp_path / f"{name}.yaml", tree(plain_model, photos, tmp_path / name, **device))
    assert _end(_start(tmp_path / "processes.yaml")) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    nodes = [_start(tmp_path / "nodes.yaml", NODE_RANK=rank, **rendezvous) for rank in ("0", "1")]
    assert [_end(node) for node in nodes] == [0, 0]
    curves = [(tmp_path / name / "losses.jsonl").read_bytes() for name in shapes]
    assert curves[0] == curves[1]
    weights = [load_file(tmp_path / n / "checkpoints" / "last.safetensors") for n in shapes]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
