"""Generates the committed Python stubs and the descriptor image from the `.proto` files.

Run as `python -m proto.generate`. `tests/proto` runs it into a scratch folder and fails when the
committed stubs differ. It does not lint: `make check` hands the descriptor image to buf.
"""

from __future__ import annotations

import shutil
import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
GENERATED = ROOT / "gen"


def sources() -> list[Path]:
    """Every `.proto` file of the contract, sorted."""
    return sorted((ROOT / "limner").rglob("*.proto"))


def generate(target: Path) -> None:
    """Writes stubs (`_pb2`, `_pb2_grpc`, type stubs) for every source below `target`.

    Raises RuntimeError when protoc refuses a file; what was there before stays then.
    """
    target.mkdir(parents=True, exist_ok=True)
    _protoc(
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out={target}",
        f"--mypy_grpc_out={target}",
    )
    for package in {source.parent.relative_to(ROOT) for source in sources()}:
        for folder in (package, *package.parents[:-1]):
            (target / folder / "__init__.py").write_text(
                '"""Generated from proto/; never edited."""\n', encoding="utf-8"
            )
        (target / package.parts[0] / "py.typed").touch()


def write_image(path: Path) -> None:
    """Writes the descriptor image, with imports and comments, that buf lints and compares."""
    _protoc(f"--descriptor_set_out={path}", "--include_imports", "--include_source_info")


def _protoc(*arguments: str) -> None:
    well_known = resources.files("grpc_tools") / "_proto"
    names = [str(source.relative_to(ROOT)) for source in sources()]
    plugins = [
        f"--plugin={name}={_plugin(name)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    code = protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *plugins, *arguments, *names])
    if code != 0:
        raise RuntimeError(f"protoc ended with exit code {code}")


def _plugin(name: str) -> str:
    beside_python = Path(sys.executable).parent / name
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing: install the extra [dev]")
    return found


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--image":
        write_image(Path(sys.argv[2]))
    else:
        shutil.rmtree(GENERATED, ignore_errors=True)
        generate(GENERATED)
