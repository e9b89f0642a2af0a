"""A service without a model, for tests of the processes around it: `python -m` runs it.

It listens, becomes ready, and ends as its environment says:
FAKE_ADDRESS host:port; FAKE_EXIT_CODE ends with it instead of becoming ready, with FAKE_WHILE only
while that file is there; FAKE_DEAF ignores SIGTERM; FAKE_JOURNAL is a file that gets the name
FAKE_NAME at the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def main() -> int:
    stop = threading.Event()
    deaf = "FAKE_DEAF" in os.environ
    signal.signal(signal.SIGTERM, lambda number, frame: None if deaf else stop.set())
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(os.environ["FAKE_ADDRESS"])
    servicer.set("fake", health_pb2.HealthCheckResponse.NOT_SERVING)
    server.start()
    if "FAKE_EXIT_CODE" in os.environ and Path(os.environ.get("FAKE_WHILE", "/")).exists():
        print("plain line", file=sys.stderr)
        print(json.dumps({"level": "INFO", "message": "listening"}), file=sys.stderr)
        print(json.dumps({"level": "ERROR", "message": "no model here"}), file=sys.stderr)
        return int(os.environ["FAKE_EXIT_CODE"])
    servicer.set("fake", health_pb2.HealthCheckResponse.SERVING)
    stop.wait()
    with Path(os.environ["FAKE_JOURNAL"]).open("a") as journal:
        journal.write(os.environ["FAKE_NAME"] + "\n")
    server.stop(None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
