"""The loop of diffusers' DreamBooth examples, rewritten: what a step of theirs computes.

After examples/dreambooth/train_dreambooth.py and train_dreambooth_lora.py: a batch is the subject's
row and the class's row, joined; every step encodes the pictures with the autoencoder and the
prompts with the text encoder, draws noise and timesteps, calls the denoiser once, splits the result
for the two losses, clips the gradients at 1 and steps AdamW (weight decay 0.01). With mixed
precision the frozen parts are kept in that type and the rest runs under autocast; in the LoRA
script the UNet, frozen, is among them and the adapters stay in float32. Their scripts have no
caches of latents, and their option to compute text embeddings once is used where the text encoder
is frozen: no worse than they can do. `train_autoencoder` lets the encoder's gradients flow, which
their scripts do not.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.training.case import Case, Workload

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Peer:
    """Their training state; `step` is one of their steps."""

    def __init__(
        self, case: Case, workload: Workload, base: Path, photographs: Path, classes: Path
    ) -> None:
        library: Any = diffusers
        self._case, self._workload = case, workload
        self._type = _TYPES[case.precision]
        self._tokenizer = transformers.CLIPTokenizer.from_pretrained(base / "tokenizer")
        self._text: Any = transformers.CLIPTextModel.from_pretrained(
            base / "text_encoder", dtype=torch.float32
        )
        self._vae = library.AutoencoderKL.from_pretrained(base / "vae")
        self._unet = library.UNet2DConditionModel.from_pretrained(base / "unet")
        self._scheduler = library.DDPMScheduler.from_pretrained(base / "scheduler")
        self._pictures = [sorted(folder.glob("*.png")) for folder in (photographs, classes)]
        self._counter = itertools.count()
        self._prepare()
        self._trained = [
            parameter
            for module in (self._unet, self._text, self._vae)
            for parameter in module.parameters()
            if parameter.requires_grad
        ]
        self._optimizer = torch.optim.AdamW(
            self._trained, lr=workload.learning_rate, weight_decay=0.01
        )
        prompts = ["a photo of sks dog", "a photo of a dog"]
        self._ids = self._tokenizer(
            prompts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        self._embeddings: Tensor | None = None
        if not case.train_text_encoder:
            with torch.no_grad():
                self._embeddings = self._text(self._ids).last_hidden_state
            del self._text

    def step(self) -> None:
        """One optimizer step."""
        case = self._case
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bfloat16"):
            pixels = self._batch().to(self._vae.dtype)
            with torch.set_grad_enabled(case.train_autoencoder):
                latents = self._vae.encode(pixels).latent_dist.sample()
            latents = latents * self._vae.config.scaling_factor
            noise = torch.randn_like(latents)
            steps = torch.randint(0, 1000, (len(latents),))
            noisy = self._scheduler.add_noise(latents, noise, steps)
            text = self._embeddings
            if text is None:
                text = self._text(self._ids).last_hidden_state
            predicted = self._unet(noisy, steps, text.to(noisy.dtype)).sample
            subject, other = predicted.float().chunk(2)
            target, other_target = noise.float().chunk(2)
            loss = F.mse_loss(subject, target) + F.mse_loss(other, other_target)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _prepare(self) -> None:
        case = self._case
        for module in (self._unet, self._text, self._vae):
            module.requires_grad_(False)
        if case.train_autoencoder:
            self._vae.requires_grad_(True)
        else:
            self._vae.to(self._type)
        if case.method == "lora":
            self._unet.to(self._type)
            self._unet.add_adapter(
                LoraConfig(
                    r=self._workload.rank,
                    lora_alpha=self._workload.rank,
                    init_lora_weights="gaussian",
                    target_modules=["to_k", "to_q", "to_v", "to_out.0"],
                )
            )
            for parameter in self._unet.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        else:
            self._unet.requires_grad_(True)
        self._unet.train()
        if case.gradient_checkpointing:
            self._unet.enable_gradient_checkpointing()
        if case.train_text_encoder:
            self._text.requires_grad_(True).train()
        else:
            self._text.to(self._type)

    def _batch(self) -> Tensor:
        index = next(self._counter)
        rows = [self._load(paths[index % len(paths)]) for paths in self._pictures]
        return torch.stack(rows)

    def _load(self, path: Path) -> Tensor:
        side = self._workload.side
        image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1.0
