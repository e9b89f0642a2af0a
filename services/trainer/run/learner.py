"""The Lightning module: a batch, a denoiser call, a loss; and how far the run is.

It gets counters from its loader, not data: `rows` makes the batch of a micro-step. What happens
between steps is in `supervision`.

Shape legend: B rows, C latent channels, h and w latent sides, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import lightning
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from services.trainer.run import randomness
from services.trainer.run.checkpoint import Position
from services.trainer.run.components import Components, encode_text, tokenize
from services.trainer.run.objective import (
    Losses,
    denoising_target,
    losses_of,
    min_snr_weights,
)
from services.trainer.run.reading import CheckedRun
from services.trainer.run.rows import Row, RowSource
from services.trainer.run.schedule import rate_factor
from services.trainer.run.weights import trained_parameters

_VALIDATION_PICTURES = 4
_VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


class MicroSteps(IterableDataset[int]):
    """The counters of the micro-steps that are left."""

    def __init__(self, first: int, last: int) -> None:
        self._range = range(first, last)

    def __iter__(self) -> Iterator[int]:
        return iter(self._range)


class Learner(lightning.LightningModule):
    """Trains what `weights` has marked in `components`."""

    def __init__(
        self,
        run: CheckedRun,
        components: Components,
        instances: RowSource,
        classes: RowSource | None,
    ) -> None:
        super().__init__()
        self._run = run
        self._components = components
        self._sources = [instances] if classes is None else [instances, classes]
        self._embeddings: dict[str, Tensor] = {}
        # Registered, so that they are moved to the device and shared between processes.
        self.unet = components.unet
        self.text_encoder = components.text_encoder
        self.parameters_by_name = trained_parameters(components)
        self.position = Position()
        self.step_losses: list[Losses] = []
        """Of the micro-steps since the last optimizer step, detached."""
        self.learning_rate = 0.0
        """Of the UNet, in the last optimizer step."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, with a group for each part."""
        section = self._run.configuration.optimization
        rates = {
            "unet": section.learning_rate,
            "text_encoder": section.text_encoder_learning_rate or section.learning_rate,
        }
        groups = []
        for part, rate in rates.items():
            members = [p for n, p in self.parameters_by_name.items() if n.startswith(f"{part}.")]
            if members:
                groups.append({"params": members, "lr": rate, "full_rate": rate})
        return torch.optim.AdamW(
            groups,
            betas=(section.beta1, section.beta2),
            eps=section.epsilon,
            weight_decay=section.weight_decay,
            # Under autocast Lightning does not clip what a fused optimizer takes.
            fused=section.precision == "float32",
        )

    def training_step(self, micro_step: int) -> Tensor:
        """The loss of micro-step `micro_step` in this process."""
        section = self._run.configuration.optimization
        torch.manual_seed(randomness.key(section.seed, "layers", micro_step, self.global_rank))
        place = micro_step * self.trainer.world_size + self.global_rank
        first, count = place * section.batch_size, section.batch_size
        rows = [row for source in self._sources for row in source.rows(first, count)]
        latents = self._latents(rows, count)
        noise = torch.cat([self._noise(latents, row) for row in rows])
        losses = self._losses(rows, latents, noise, self._timesteps(rows), count)
        self.step_losses.append(_detached(losses))
        return losses.total

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Set the rate of this step, and step."""
        factor = rate_factor(self._run.configuration.optimization, self.position.step)
        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
        self.learning_rate = float(optimizer.param_groups[0]["lr"])
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    @torch.no_grad()
    def validation_loss(self) -> float:
        """The loss on the first pictures at fixed times and with fixed noise."""
        totals = []
        for time_index, time in enumerate(_VALIDATION_TIMES):
            rows = self._validation_rows()
            instance_count = sum(row.kind == "instance" for row in rows)
            latents = self._latents(rows, instance_count)
            seed = self._run.configuration.validation.seed
            noise = torch.cat(
                [
                    randomness.normal(
                        tuple(latents[:1].shape), seed, "validation", row.index, time_index
                    )
                    for row in rows
                ]
            ).to(latents.device)
            step = int(time * self._train_step_count)
            steps = torch.full((len(rows),), step, device=latents.device)
            totals.append(self._losses(rows, latents, noise, steps, instance_count).total)
        return float(torch.stack(totals).mean())

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (B, L, D); each prompt is encoded once where that is legal."""
        tokenizer = self._components.tokenizer
        if not self._run.configuration.caches_text:
            ids = tokenize(tokenizer, prompts).to(self.device)
            return encode_text(self.text_encoder, ids)
        for prompt in set(prompts) - self._embeddings.keys():
            with torch.no_grad():
                ids = tokenize(tokenizer, [prompt]).to(self.device)
                self._embeddings[prompt] = encode_text(self.text_encoder, ids)
        return torch.cat([self._embeddings[prompt] for prompt in prompts])

    def _losses(
        self, rows: Sequence[Row], latents: Tensor, noise: Tensor, steps: Tensor, count: int
    ) -> Losses:
        configuration, scheduler = self._run.configuration, self._components.scheduler
        kind = self._run.base.prediction_type
        noisy = scheduler.add_noise(latents, noise, steps)
        text = self.encode_prompts([row.prompt for row in rows])
        prediction = cast(Tensor, self.unet(noisy, steps, text, return_dict=False)[0])
        gamma = configuration.optimization.min_snr_gamma
        weights = (
            None if gamma is None else min_snr_weights(scheduler.alphas_cumprod, steps, gamma, kind)
        )
        return losses_of(
            prediction,
            denoising_target(scheduler, kind, latents, noise, steps),
            weights,
            instance_count=count,
            prior_weight=configuration.prior.loss_weight if configuration.prior else 0.0,
        )

    def _latents(self, rows: Sequence[Row], count: int) -> Tensor:
        parts = [rows[:count], rows[count:]]
        return torch.cat(
            [source.latents(part) for source, part in zip(self._sources, parts, strict=False)]
        )

    def _noise(self, latents: Tensor, row: Row) -> Tensor:
        seed = self._run.configuration.optimization.seed
        drawn = randomness.normal(tuple(latents[:1].shape), seed, "noise", row.counter)
        return drawn.to(latents.device)

    def _timesteps(self, rows: Sequence[Row]) -> Tensor:
        seed, count = self._run.configuration.optimization.seed, self._train_step_count
        drawn = [randomness.uniform(seed, "timestep", row.counter) for row in rows]
        return torch.tensor([int(share * count) for share in drawn], device=self.device)

    def _validation_rows(self) -> list[Row]:
        return [
            row for source in self._sources for row in source.validation_rows(_VALIDATION_PICTURES)
        ]

    @property
    def _train_step_count(self) -> int:
        return int(self._components.scheduler.config.num_train_timesteps)


def _detached(losses: Losses) -> Losses:
    return Losses(
        total=losses.total.detach(),
        instance=losses.instance.detach(),
        prior=None if losses.prior is None else losses.prior.detach(),
    )
