"""What comes out of a run: a folder that appears whole or not at all.

result/
  model/                  diffusers layout, ready to be served; LoRA updates are merged in
  lora/                   method lora only
    pytorch_lora_weights.safetensors   diffusers layout
    <name>.safetensors                 the single-file layout that other tools read; not of SD3,
                                       of which they read diffusers' layout
  samples/                the newest sample pictures
  configuration.yaml      every value that was used
  run.json                base revision, dataset digest, token, prompts, versions
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml
from diffusers.training_utils import _collate_lora_metadata
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import nn

from services.storage.durable import move_folder
from services.trainer.run.base_model import BaseModel
from services.trainer.run.checkpoint import Identity, Position
from services.trainer.run.components import Components
from services.trainer.run.reading import CheckedRun
from services.trainer.run.reporting import write_atomically
from services.trainer.run.single_file import single_file_keys, write_single_file

RESULT_FOLDER = "result"

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def export_result(
    run: CheckedRun,
    components: Components,
    *,
    identity: Identity,
    position: Position,
    samples: list[Path],
) -> Path:
    """Write the folder from the weights as they are in `components`; returns it."""
    output = run.configuration.output
    for left in output.glob(f".{RESULT_FOLDER}.*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial = output / f".{RESULT_FOLDER}.{os.getpid()}"
    result = output / RESULT_FOLDER
    try:
        _write_result(run, components, partial, _facts(run, identity, position), samples)
        # The service may be on another machine, and calls the job done once this process says so.
        move_folder(partial, result)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk is not to be kept full
    return result


def _write_result(
    run: CheckedRun,
    components: Components,
    folder: Path,
    facts: dict[str, Any],
    samples: list[Path],
) -> None:
    if run.configuration.method == "lora":
        _write_lora(run, components, folder / "lora")
    _write_model(run, components, folder / "model")
    (folder / "samples").mkdir()
    for path in samples:
        shutil.copy2(path, folder / "samples" / path.name)
    configuration = run.configuration.model_dump(mode="json")
    write_atomically(folder / "configuration.yaml", yaml.safe_dump(configuration, sort_keys=False))
    write_atomically(folder / "run.json", json.dumps(facts, indent=1))


def _facts(run: CheckedRun, identity: Identity, position: Position) -> dict[str, Any]:
    configuration = run.configuration
    return {
        "base_revision": run.base_revision,
        "dataset_digest": run.dataset_digest,
        "family": run.base.family,
        "method": configuration.method,
        "token": configuration.instance.token,
        "instance_prompt": configuration.instance.prompt,
        "class_prompt": configuration.prior.prompt if configuration.prior else None,
        "side": run.side,
        **asdict(identity),
        **asdict(position),
    }


def _write_lora(run: CheckedRun, components: Components, folder: Path) -> None:
    adapted = _trained(run, components)
    states = {part: get_peft_model_state_dict(module) for part, module in adapted.items()}
    for part in adapted.keys() & set(run.base.text_parts):
        # The name that the rest of the field knows; transformers has dropped the level.
        prefix = "" if hasattr(adapted[part], "text_model") else "text_model."
        states[part] = {f"{prefix}{key}": value for key, value in states[part].items()}
    pipeline_class: Any = getattr(diffusers, run.base.parts.pipeline_class)
    pipeline_class.save_lora_weights(
        folder,
        **{f"{part}_lora_layers": state for part, state in states.items()},
        **_lora_metadata(adapted),
    )
    if run.base.parts.denoiser != "unet":
        return  # the file above is what other tools read of such a model
    tensors = single_file_keys(states, alpha=run.configuration.lora.alpha)
    name = f"{run.configuration.instance.token}.safetensors"
    write_single_file(
        folder / _file_name(name),
        tensors,
        rank=run.configuration.lora.rank,
        alpha=run.configuration.lora.alpha,
    )


def _lora_metadata(adapted: dict[str, nn.Module]) -> dict[str, Any]:
    """How the adapters are read: without dropout, which a reader would otherwise apply, and
    without the path of the base, which is nobody's business."""
    neutral = {"lora_dropout": 0.0, "base_model_name_or_path": None, "inference_mode": True}
    collated: dict[str, dict[str, Any]] = _collate_lora_metadata(adapted)
    return {part: metadata | neutral for part, metadata in collated.items()}


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name)


def _trained(run: CheckedRun, components: Components) -> dict[str, nn.Module]:
    frozen = () if run.configuration.optimization.train_text_encoder else run.base.text_parts
    return {part: each for part, each in components.loaded.items() if part not in frozen}


@torch.no_grad()
def _merged(base: BaseModel, part: str, trained: nn.Module) -> nn.Module:
    """A part of the base model in float32 with the updates added."""
    merged = Components(base).part(part)
    for name, layer in trained.named_modules():
        if isinstance(layer, LoraLayer):
            weight = merged.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            adapted: Any = layer  # every kind of layer has it, their common base has not
            weight.add_(adapted.get_delta_weight("default").to(weight))
    return merged


def _write_model(run: CheckedRun, components: Components, folder: Path) -> None:
    base = run.base.folder
    folder.mkdir(parents=True)
    trained = _trained(run, components)
    kept = (*run.base.tokenizer_parts, "scheduler", "vae", *run.base.text_parts)
    for part in kept:
        if part not in trained:
            shutil.copytree(base / part, folder / part)
    for part, module in trained.items():
        dtype = _stored_dtype(next((base / part).glob("*.safetensors")))
        lora = run.configuration.method == "lora"
        saved: Any = (_merged(run.base, part, module) if lora else module).to("cpu", dtype)
        saved.save_pretrained(folder / part, safe_serialization=True)
        # Libraries compute in the type that it names, which need not be the one stored.
        shutil.copy2(base / part / "config.json", folder / part / "config.json")
    index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    for part in ("safety_checker", "feature_extractor", "image_encoder"):
        if part in index:
            index[part] = [None, None]
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    write_atomically(folder / "model_index.json", json.dumps(index, indent=2))
    _write_card(run, folder)


def _write_card(run: CheckedRun, folder: Path) -> None:
    """The base's card, with the token among the words that the model understands."""
    path = run.base.folder / "limner.json"
    if path.is_file():
        card = json.loads(path.read_text(encoding="utf-8"))
        words = [*card.get("words", []), run.configuration.instance.token]
        write_atomically(folder / path.name, json.dumps(card | {"words": words}, indent=1))


def _stored_dtype(path: Path) -> torch.dtype:
    with safe_open(path, "pt") as file:
        name = next(iter(file.keys()))
        return _DTYPES.get(file.get_slice(name).get_dtype(), torch.float32)
