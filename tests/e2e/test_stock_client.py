"""Clients that know the protos and nothing else of this project."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.e2e.running_suite import ROOT, RunningSuite

_SCRIPT = """
import sys
import grpc
import limner
from limner.v1 import generation_pb2, generation_pb2_grpc

assert limner.__file__.startswith(sys.path[0]), limner.__file__
address, key, output = sys.argv[1:]
with grpc.insecure_channel(address) as channel:
    call = generation_pb2_grpc.GenerationServiceStub(channel).GenerateImage(
        generation_pb2.GenerateImageRequest(prompt="a red apple", step_count=4),
        metadata=[("authorization", "Bearer " + key)],
    )
    events = list(call)
assert events[0].WhichOneof("event") == "accepted"
data = b"".join(event.artifact.data for event in events)
assert events[-1].artifact.last
open(output, "wb").write(data)
print(call.code().name)
"""


def test_a_client_generated_from_the_protos_gets_its_picture(
    suite: RunningSuite, folder: Path
) -> None:
    well_known = importlib.util.find_spec("grpc_tools")
    assert well_known is not None
    assert well_known.origin is not None
    protos = sorted(str(path) for path in (ROOT / "proto" / "limner").rglob("*.proto"))
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *(f"-I{ROOT / 'proto'}", f"-I{Path(well_known.origin).parent / '_proto'}"),
            *(f"--python_out={folder}", f"--grpc_python_out={folder}", *protos),
        ],
        check=True,
    )
    for package in (folder / "limner", folder / "limner" / "v1"):
        (package / "__init__.py").touch()
    (folder / "script.py").write_text(_SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py", suite.address, suite.key, "apple.png"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "OK"), done.stderr
    assert (folder / "apple.png").read_bytes().startswith(b"\x89PNG")


def test_reflection_lists_what_the_gateway_serves(suite: RunningSuite) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="*")
    with grpc.insecure_channel(suite.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]))
    names = {service.name for service in answer.list_services_response.service}
    assert names == {
        "limner.v1.GenerationService",
        "limner.v1.ModelService",
        "limner.v1.AccountService",
        "limner.v1.AdminService",
        "limner.v1.UpscaleService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
