"""The pepper: the secret under which API keys are digested, kept in a file beside the database.

Used by `limner up` and `limner keys` on one machine. In a cluster the pepper comes from a secret in
LIMNER_GATEWAY_KEY_PEPPER and this file is not involved. Losing the pepper makes every key unknown.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

MIN_PEPPER_LENGTH = 32
_PEPPER_BYTES = 32


class PepperError(Exception):
    """The pepper's file cannot be used; the message says why and what to do."""


def load_or_create_pepper(data_dir: Path) -> str:
    """The pepper in `data_dir / "pepper"`; on first use a random one is written, mode 0600.

    Creation is atomic: of several processes that start at once one wins, all read its pepper, and
    nobody sees a half-written file. Raises PepperError when the file is readable by others or too
    short, OSError when it cannot be read or written.
    """
    path = data_dir / "pepper"
    data_dir.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _create(path)
    return _load(path)


def _create(path: Path) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(_PEPPER_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        return  # another process was first: its pepper counts
    finally:
        draft.unlink()


def _load(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        pepper = file.read().strip()
    if mode & 0o077:
        raise PepperError(f"{path} is open to other users; run: chmod 600 {path}")
    if len(pepper) < MIN_PEPPER_LENGTH:
        raise PepperError(f"{path} holds fewer than {MIN_PEPPER_LENGTH} characters")
    return pepper
