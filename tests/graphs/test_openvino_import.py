"""OpenVINO's own telemetry: a server that must not call home, nor fork beside grpc's threads."""

from __future__ import annotations

import subprocess
import sys

_NO_FORK = """
import os, sys

def refuse(event, arguments):
    if event == "os.fork":
        os.write(2, b"forked")
        os._exit(1)

sys.addaudithook(refuse)
"""
_OURS = "from services.graphs.openvino_graph import native_precision; native_precision()"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _NO_FORK + code], capture_output=True, text=True, timeout=120
    )


def test_openvino_sends_nothing_and_forks_nothing() -> None:
    ended = run(f"{_OURS}\nassert not sys.modules['openvino_telemetry']")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
