"""What OpenVINO does to a process besides computing: no fork, no calling home, no lost signals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_NO_FORK = """
import os, sys

def refuse(event, arguments):
    if event == "os.fork":
        os.write(2, b"forked")
        os._exit(1)

sys.addaudithook(refuse)

from services.graphs.openvino_graph import native_precision

native_precision()
assert not sys.modules["openvino_telemetry"]
"""

_SIGNAL_AFTER_THE_LAST_GRAPH = """
import faulthandler, os, pathlib, signal, sys, threading

faulthandler.enable()

from services.graphs.openvino_graph import OpenVinoGraph

graphs = [OpenVinoGraph(pathlib.Path(sys.argv[1]), precision="float32", thread_count=1)]
dropping = threading.Thread(target=graphs.clear)
dropping.start()
dropping.join()
signal.signal(signal.SIGTERM, lambda number, frame: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=170
    )


def test_openvino_sends_nothing_and_forks_nothing() -> None:
    ended = run(_NO_FORK)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""


def test_a_signal_is_handled_after_the_last_graph_went_on_another_thread(
    decoder_file: Path,
) -> None:
    ended = run(_SIGNAL_AFTER_THE_LAST_GRAPH, str(decoder_file))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "handled\n"
