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
from services.trainer.run.components import Components, Text, encode_text
from services.trainer.run.objective import (
    Losses,
    denoising_target,
    losses_of,
    min_snr_weights,
    squared_errors,
)
from services.trainer.run.optimizer import make_optimizer
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
        self._texts: dict[str, Text] = {}
        # Registered, so that they are moved to the device and shared between processes.
        self.unet = components.unet
        for name, module in components.text_encoders.items():
            self.add_module(name, module)
        self.parameters_by_name = trained_parameters(components)
        self.position = Position()
        self.step_losses: list[Losses] = []
        """Of the micro-steps since the last optimizer step, detached."""
        self.learning_rate = 0.0
        """Of the UNet, in the last optimizer step."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, with a group for each part."""
        section = self._run.configuration.optimization
        groups = []
        for part in self._components.trainable:
            rate = section.learning_rate
            if part != "unet":
                rate = section.text_encoder_learning_rate or rate
            members = [p for n, p in self.parameters_by_name.items() if n.startswith(f"{part}.")]
            if members:
                groups.append({"params": members, "lr": rate, "full_rate": rate})
        return make_optimizer(section, groups)

    def training_step(self, micro_step: int) -> Tensor:
        """The loss of micro-step `micro_step` in this process."""
        section = self._run.configuration.optimization
        torch.manual_seed(randomness.key(section.seed, "layers", micro_step, self.global_rank))
        place = micro_step * self.trainer.world_size + self.global_rank
        first, count = place * section.batch_size, section.batch_size
        rows = [row for source in self._sources for row in source.rows(first, count)]
        latents = self._latents(rows)
        noise = [self._noise(one, row) for one, row in zip(latents, rows, strict=True)]
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
            latents = self._latents(rows)
            seed = self._run.configuration.validation.seed
            noise = [
                randomness.normal(tuple(one.shape), seed, "validation", row.index, time_index).to(
                    one.device
                )
                for one, row in zip(latents, rows, strict=True)
            ]
            step = int(time * self._train_step_count)
            steps = torch.full((len(rows),), step, device=self.device)
            totals.append(self._losses(rows, latents, noise, steps, instance_count).total)
        return float(torch.stack(totals).mean())

    def encode_prompts(self, prompts: Sequence[str]) -> Text:
        """What the denoiser is told of B prompts; each is encoded once where that is legal."""
        if not self._run.configuration.caches_text:
            return encode_text(self._components, prompts, self.device)
        for prompt in set(prompts) - self._texts.keys():
            with torch.no_grad():
                self._texts[prompt] = encode_text(self._components, [prompt], self.device)
        return Text.join([self._texts[prompt] for prompt in prompts])

    def _losses(
        self,
        rows: Sequence[Row],
        latents: Sequence[Tensor],
        noise: Sequence[Tensor],
        steps: Tensor,
        count: int,
    ) -> Losses:
        """Rows of one shape, so all without aspect buckets, take one denoiser call."""
        configuration, scheduler = self._run.configuration, self._components.scheduler
        errors: dict[int, Tensor] = {}
        for places in _by_shape(latents):
            found = self._errors(
                [rows[place] for place in places],
                torch.cat([latents[place] for place in places]),
                torch.cat([noise[place] for place in places]),
                steps[places],
            )
            errors |= dict(zip(places, found, strict=True))
        gamma, kind = configuration.optimization.min_snr_gamma, self._run.base.prediction_type
        weights = (
            None if gamma is None else min_snr_weights(scheduler.alphas_cumprod, steps, gamma, kind)
        )
        return losses_of(
            torch.stack([errors[place] for place in range(len(rows))]),
            weights,
            instance_count=count,
            prior_weight=configuration.prior.loss_weight if configuration.prior else 0.0,
        )

    def _errors(
        self, rows: Sequence[Row], latents_BChw: Tensor, noise_BChw: Tensor, steps_B: Tensor
    ) -> Tensor:
        scheduler, kind = self._components.scheduler, self._run.base.prediction_type
        noisy = scheduler.add_noise(latents_BChw, noise_BChw, steps_B)
        text = self.encode_prompts([row.prompt for row in rows])
        prediction = self.unet(
            noisy,
            steps_B,
            text.embeddings_BLD,
            added_cond_kwargs=self._added(rows, text),
            return_dict=False,
        )[0]
        target = denoising_target(scheduler, kind, latents_BChw, noise_BChw, steps_B)
        return squared_errors(cast(Tensor, prediction), target)

    def _added(self, rows: Sequence[Row], text: Text) -> dict[str, Tensor] | None:
        """SDXL's further conditions: pooled text and sizes."""
        if text.pooled_BP is None:
            return None
        sizes = [self._source(row).time_ids(row) for row in rows]
        return {
            "text_embeds": text.pooled_BP,
            "time_ids": torch.tensor(sizes, device=self.device, dtype=torch.float32),
        }

    def _latents(self, rows: Sequence[Row]) -> list[Tensor]:
        return [self._source(row).latents(row) for row in rows]

    def _source(self, row: Row) -> RowSource:
        return next(source for source in self._sources if source.kind == row.kind)

    def _noise(self, latents: Tensor, row: Row) -> Tensor:
        seed = self._run.configuration.optimization.seed
        return randomness.normal(tuple(latents.shape), seed, "noise", row.counter).to(
            latents.device
        )

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


def _by_shape(latents: Sequence[Tensor]) -> list[list[int]]:
    """Places of the rows of each shape, in the order in which shapes appear."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, one in enumerate(latents):
        places.setdefault(tuple(one.shape), []).append(place)
    return list(places.values())


def _detached(losses: Losses) -> Losses:
    return Losses(
        total=losses.total.detach(),
        instance=losses.instance.detach(),
        prior=None if losses.prior is None else losses.prior.detach(),
    )
