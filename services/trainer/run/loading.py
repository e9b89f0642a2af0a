"""Parts of a model from their files, or an error that says what is wrong with those.

Called by `components`. Weights that are missing or misshapen are an error: the libraries would fill
them with random numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from services.trainer.run.base_model import DENOISER_WEIGHTS, BaseModelError

# Buffers that older checkpoints carry and newer ones compute.
_COMPUTED_KEYS = ("position_ids",)
_LOADING_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError)


def load_tokenizer(tokenizer_class: Any, folder: Path) -> Any:
    """A text encoder's tokenizer."""
    try:
        return tokenizer_class.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise BaseModelError(f"{folder} cannot be loaded: {_first_line(error)}") from error


def load_part(component_class: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """A part by its library's own loader, which knows the names that weights once had."""
    try:
        module, report = component_class.from_pretrained(
            folder, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except _LOADING_ERRORS as error:
        raise BaseModelError(f"{folder} cannot be loaded: {_first_line(error)}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        _refuse(folder, problem, map(str, report[problem]))
    return cast(nn.Module, module.eval().requires_grad_(False))


def load_denoiser(component_class: Any, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The largest part, never in memory twice: not in another type, and not as a file's pages
    either."""
    try:
        # Nothing is allocated, and nothing drawn, for weights that come from the file.
        with torch.device("meta"):
            module = component_class.from_config(component_class.load_config(folder))
        state = _read_weights(folder / DENOISER_WEIGHTS, dtype)
        wanted = module.state_dict()
        _refuse(folder, "missing_keys", wanted.keys() - state.keys())
        found = {name: state[name] for name in wanted}
        shapes = (name for name in wanted if wanted[name].shape != found[name].shape)
        _refuse(folder, "mismatched_keys", shapes)
        module.load_state_dict(found, assign=True)
    except _LOADING_ERRORS as error:
        raise BaseModelError(f"{folder} cannot be loaded: {_first_line(error)}") from error
    return cast(nn.Module, module.eval().requires_grad_(False))


def _read_weights(path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    state: dict[str, Tensor] = {}
    for name in names:
        # Opened anew: the pages of a file that was read stay as long as it is mapped.
        with safe_open(path, "pt") as file:
            state[name] = file.get_tensor(name).to(dtype)
    return state


def _refuse(folder: Path, problem: str, names: Any) -> None:
    keys = sorted(name for name in names if not name.endswith(_COMPUTED_KEYS))
    if keys:
        raise BaseModelError(
            f"{folder}: weights do not fit config.json: {problem.replace('_', ' ')} "
            f"{', '.join(keys[:3])} ({len(keys)} in all)"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
