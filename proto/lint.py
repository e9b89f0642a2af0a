"""Checks the contract: buf's lint rules and the freshness of the committed stubs.

`make check` runs it as `python -m proto.lint`. It changes nothing; `python -m proto.generate` does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from proto.generate import GENERATED, ROOT, generate, write_image


def stale_stubs() -> list[str]:
    """Paths below `proto/gen` that differ from what the sources generate now, sorted."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        return sorted(
            name
            for name in _files(fresh) | _files(GENERATED)
            if _content(fresh / name) != _content(GENERATED / name)
        )


def lint_messages() -> str:
    """What buf finds wrong, one finding a line; empty when all is well."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        write_image(image)
        buf = Path(sys.executable).parent / "buf"
        command = [str(buf), "lint", str(image), "--config", str(ROOT / "buf.yaml")]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode and not run.stdout:
            raise RuntimeError(f"buf failed: {run.stderr.strip()}")
        return run.stdout.strip()


def _files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def main() -> int:
    """Prints what is wrong and returns the exit code."""
    findings = [line for line in lint_messages().splitlines() if line]
    findings += [f"stale: proto/gen/{name} (run `make proto`)" for name in stale_stubs()]
    print("\n".join(findings) or "proto: lint clean, stubs fresh")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
