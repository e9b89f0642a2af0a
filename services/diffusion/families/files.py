"""The files of a model: found in a folder or fetched from the hub, read, checked and digested.

Called by the families. Knows the diffusers layout (a folder of component folders), not what the
components are.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from services.diffusion.families.errors import (
    BrokenModelError,
    ModelNotReachableError,
    UnsafeWeightsError,
)

REVISION_LENGTH = 16

# Unused weights, such as single-file checkpoints beside the components, are not fetched.
_HUB_FILES = (
    "model_index.json",
    "limner.json",
    "scheduler/*.json",
    "tokenizer/*",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")

logger = logging.getLogger(__name__)


def locate(path_or_hub_id: str) -> Path:
    """Folder of a model, after a download where it is a hub id.

    Raises `ModelNotReachableError`.
    """
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelNotReachableError(f"{path_or_hub_id} is a file; a model is a folder")
    if not _looks_like_hub_id(path_or_hub_id):
        raise ModelNotReachableError(f"there is no folder {path_or_hub_id}")
    return _fetch(path_or_hub_id)


def _looks_like_hub_id(text: str) -> bool:
    owner, slash, name = text.partition("/")
    return bool(slash and name) and "/" not in name and not owner.startswith((".", "~"))


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    logger.info("no folder %s here; asking the model hub", hub_id)
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelNotReachableError(
            f"there is no folder {hub_id}, and the model hub does not give it: {reason}"
        ) from error


def read_json(path: Path) -> dict[str, object]:
    """Contents of a JSON object; raises `BrokenModelError` naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenModelError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise BrokenModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise BrokenModelError(f"{path} must hold a JSON object")
    return value


def require_safetensors(folder: Path, stem: str) -> Path:
    """Weights of the component in `folder`: `<stem>.safetensors`.

    Raises `UnsafeWeightsError` where only pickled weights are there, else `BrokenModelError`.
    """
    weights = folder / f"{stem}.safetensors"
    if weights.is_file():
        return weights
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLED)
    if pickled:
        raise UnsafeWeightsError(
            f"{folder} has {', '.join(pickled)} but no {weights.name}: only safetensors are "
            "loaded, because a pickled file can run code; convert it first"
        )
    raise BrokenModelError(f"{weights} is missing")


def content_digest(root: Path, paths: Iterable[Path]) -> str:
    """Digest of the names and bytes of `paths` under `root`, 16 hexadecimal digits."""
    total = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(root).as_posix()} {digest}\n".encode())
    return total.hexdigest()[:REVISION_LENGTH]


def existing_files(folders: Sequence[Path], suffixes: Sequence[str]) -> list[Path]:
    """Files with one of `suffixes` directly in `folders`."""
    return [
        path
        for folder in folders
        for path in folder.glob("*")
        if path.is_file() and path.suffix in suffixes
    ]
