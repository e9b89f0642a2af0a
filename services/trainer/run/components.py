"""The parts of a base model in torch, and what a run does with them frozen.

Shape legend: B rows, C latent channels, h and w latent sides, H and W picture sides, L tokens,
D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from services.trainer.run.base_model import BaseModel, BaseModelError, FamilyName

# Buffers that older checkpoints carry and newer ones compute.
_COMPUTED_KEYS = ("position_ids",)


@dataclass(kw_only=True, slots=True, eq=False)
class Components:
    """The parts of a model, in float32, frozen, in evaluation mode."""

    base: BaseModel
    tokenizers: tuple[Any, ...]
    text_encoders: Mapping[str, nn.Module]
    """By their names in the folder, in the order of their tokenizers."""
    unet: nn.Module
    vae: nn.Module
    scheduler: Any
    """A diffusers `DDPMScheduler` with the model's noise schedule."""

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """What a run may train, by name, in a fixed order."""
        return {"unet": self.unet, **self.text_encoders}

    def pipeline(self) -> Any:
        """A stock pipeline around these very parts, with DDIM, and silent."""
        # diffusers' constructors have no types.
        scheduler_class: Any = diffusers.DDIMScheduler
        family = self.base.parts
        pipeline_class: Any = getattr(diffusers, family.pipeline_class)
        pipeline = pipeline_class(
            **dict(zip(family.tokenizer_parts, self.tokenizers, strict=True)),
            **self.text_encoders,
            unet=self.unet,
            vae=self.vae,
            scheduler=scheduler_class.from_config(self.scheduler.config),
            **_PIPELINE_OPTIONS[self.base.family](self.base),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load_components(base: BaseModel) -> Components:
    """Read every part from safetensors.

    Raises `BaseModelError` for files that cannot be read and for weights that are missing or
    misshapen: the libraries would fill those with random numbers.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # It warns of every key that another version of itself wrote.
    diffusers.utils.logging.set_verbosity_error()
    folder, family = base.folder, base.parts
    scheduler_class: Any = diffusers.DDPMScheduler
    return Components(
        base=base,
        tokenizers=tuple(_load_tokenizer(folder / part) for part in family.tokenizer_parts),
        text_encoders={
            part: _load(getattr(transformers, family.classes[part][0]), folder / part)
            for part in family.text_parts
        },
        unet=_load(diffusers.UNet2DConditionModel, folder / "unet"),
        vae=_load(getattr(diffusers, base.vae_class), folder / "vae"),
        scheduler=scheduler_class.from_pretrained(folder / "scheduler"),
    )


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Token ids (B, L), padded to the window; what does not fit is cut."""
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return cast(Tensor, tokens.input_ids)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Text:
    """What a denoiser is told of B prompts."""

    embeddings_BLD: Tensor
    pooled_BP: Tensor | None = None
    """SDXL only."""

    @classmethod
    def join(cls, rows: Sequence[Text]) -> Text:
        """Several after one another."""
        pooled = [row.pooled_BP for row in rows if row.pooled_BP is not None]
        return cls(
            embeddings_BLD=torch.cat([row.embeddings_BLD for row in rows]),
            pooled_BP=torch.cat(pooled) if pooled else None,
        )


def encode_text(components: Components, prompts: Sequence[str], device: torch.device) -> Text:
    """Encode as the stock pipeline of the family does, so without a mask.

    SD 1.x: the last hidden state. SDXL: the last but one of both encoders, joined, and the second's
    projection; zeros for empty prompts where the model wants those.
    """
    encoders = list(components.text_encoders.values())
    ids = [tokenize(each, prompts).to(device) for each in components.tokenizers]
    if components.base.family == "sd1":
        return Text(embeddings_BLD=cast(Tensor, encoders[0](ids[0]).last_hidden_state))
    outputs = [
        encoder(ids_BL, output_hidden_states=True)
        for encoder, ids_BL in zip(encoders, ids, strict=True)
    ]
    embeddings = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    pooled = cast(Tensor, outputs[-1].text_embeds)
    if components.base.zeroes_empty_prompts:
        kept = torch.tensor([float(prompt != "") for prompt in prompts], device=device)
        embeddings, pooled = embeddings * kept[:, None, None], pooled * kept[:, None]
    return Text(embeddings_BLD=embeddings, pooled_BP=pooled)


def encode_moments(vae: nn.Module, pictures_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and deviation (B, C, h, w) of the latents of pictures in [-1, 1], scaled as the
    denoiser sees them; no deviation for an autoencoder that is deterministic."""
    encoded = vae.encode(pictures_B3HW)  # type: ignore[operator]
    scale = float(cast(Any, vae).config.scaling_factor)
    if hasattr(encoded, "latents"):
        return encoded.latents * scale, None
    distribution = encoded.latent_dist
    return distribution.mean * scale, distribution.std * scale


def common_word(tokenizer: Any, token: str) -> bool:
    """Whether the tokenizer knows `token` as one of its frequent words.

    Tokens are numbered by how early they were merged, hence by frequency; of CLIP's 49,408 the
    customary `sks` is number 48,136.
    """
    ids = tokenizer(token, add_special_tokens=False).input_ids
    return len(ids) == 1 and ids[0] < 0.9 * len(tokenizer) and ids[0] >= 512


def _sd1_options(base: BaseModel) -> dict[str, Any]:
    return {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _sdxl_options(base: BaseModel) -> dict[str, Any]:
    return {
        "force_zeros_for_empty_prompt": base.zeroes_empty_prompts,
        "add_watermarker": False,
    }


_PIPELINE_OPTIONS: Mapping[FamilyName, Callable[[BaseModel], dict[str, Any]]] = {
    "sd1": _sd1_options,
    "sdxl": _sdxl_options,
}


def _load_tokenizer(folder: Path) -> Any:
    try:
        return transformers.CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise BaseModelError(f"{folder} cannot be loaded: {_first_line(error)}") from error


def _load(component_class: Any, folder: Path) -> nn.Module:
    try:
        module, report = component_class.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BaseModelError(f"{folder} cannot be loaded: {_first_line(error)}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        keys = [key for key in map(str, report[problem]) if not key.endswith(_COMPUTED_KEYS)]
        if keys:
            raise BaseModelError(
                f"{folder}: weights do not fit config.json: {problem.replace('_', ' ')} "
                f"{', '.join(sorted(keys)[:3])} ({len(keys)} in all)"
            )
    return cast(nn.Module, module.eval().requires_grad_(False))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
