"""The Lightning module: a batch, a denoiser call, a loss; and how far the run is.

It gets counters from its loader, not data: `rows` makes the batch of a micro-step. What happens
between steps is in `supervision`.

Shape legend: B rows, C latent channels, h and w latent sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from services.trainer.run import randomness
from services.trainer.run.checkpoint import Position
from services.trainer.run.components import Components
from services.trainer.run.denoising import denoise
from services.trainer.run.noising import Diffusion, noising_of
from services.trainer.run.objective import (
    Losses,
    losses_of,
    squared_errors,
)
from services.trainer.run.optimizer import make_optimizer
from services.trainer.run.reading import CheckedRun
from services.trainer.run.rows import Row, RowSource
from services.trainer.run.schedule import rate_factor
from services.trainer.run.text import PromptEncoder
from services.trainer.run.weights import trained_parameters

VALIDATION_PICTURES = 4
"""How many of each kind the validation loss is taken over."""
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
        sources: Sequence[RowSource],
        encode_prompts: PromptEncoder,
    ) -> None:
        super().__init__()
        self._run = run
        self._components = components
        self._sources = sources
        self.encode_prompts = encode_prompts
        self._noising = noising_of(run.base, components.scheduler)
        # Registered, so that they are moved to the device and shared between processes.
        for name, module in components.loaded.items():
            self.add_module(name, module)
        self.parameters_by_name = trained_parameters(components)
        self.position = Position()
        self.step_losses: list[Losses] = []
        """Of the micro-steps since the last optimizer step, detached."""
        self.learning_rate = 0.0
        """Of the denoiser, in the last optimizer step."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, with a group for each part."""
        section = self._run.configuration.optimization
        groups = []
        for part in self._components.trainable_parts:
            rate = section.learning_rate
            if part != self._run.base.parts.denoiser:
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
        losses = self._losses(rows, latents, noise, self._levels(rows), count)
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
            levels = torch.full((len(rows),), self._noising.level(time), device=self.device)
            totals.append(self._losses(rows, latents, noise, levels, instance_count).total)
        return float(torch.stack(totals).mean())

    def _losses(
        self,
        rows: Sequence[Row],
        latents: Sequence[Tensor],
        noise: Sequence[Tensor],
        levels: Tensor,
        count: int,
    ) -> Losses:
        """Rows of one shape, so all without aspect buckets, take one denoiser call."""
        configuration = self._run.configuration
        errors: dict[int, Tensor] = {}
        for places in _by_shape(latents):
            found = self._errors(
                [rows[place] for place in places],
                torch.cat([latents[place] for place in places]),
                torch.cat([noise[place] for place in places]),
                levels[places],
            )
            errors |= dict(zip(places, found, strict=True))
        gamma, weights = configuration.optimization.min_snr_gamma, None
        if gamma is not None:
            assert isinstance(self._noising, Diffusion), "the checks of a run refuse it"
            weights = self._noising.weights(levels, gamma)
        return losses_of(
            torch.stack([errors[place] for place in range(len(rows))]),
            weights,
            instance_count=count,
            prior_weight=configuration.prior.loss_weight if configuration.prior else 0.0,
        )

    def _errors(
        self, rows: Sequence[Row], latents_BChw: Tensor, noise_BChw: Tensor, levels_B: Tensor
    ) -> Tensor:
        noising = self._noising
        prediction = denoise(
            self._run.base.family,
            self._components.denoiser,
            noising.noisy(latents_BChw, noise_BChw, levels_B),
            noising.times(levels_B),
            self.encode_prompts([row.prompt for row in rows]),
            [self._source(row).time_ids(row) for row in rows],
        )
        return squared_errors(prediction, noising.target(latents_BChw, noise_BChw, levels_B))

    def _latents(self, rows: Sequence[Row]) -> list[Tensor]:
        return [self._source(row).latents(row) for row in rows]

    def _source(self, row: Row) -> RowSource:
        return next(source for source in self._sources if source.kind == row.kind)

    def _noise(self, latents: Tensor, row: Row) -> Tensor:
        seed = self._run.configuration.optimization.seed
        return randomness.normal(tuple(latents.shape), seed, "noise", row.counter).to(
            latents.device
        )

    def _levels(self, rows: Sequence[Row]) -> Tensor:
        seed = self._run.configuration.optimization.seed
        drawn = [randomness.uniform(seed, "timestep", row.counter) for row in rows]
        return torch.tensor([self._noising.drawn_level(one) for one in drawn], device=self.device)

    def _validation_rows(self) -> list[Row]:
        return [
            row for source in self._sources for row in source.validation_rows(VALIDATION_PICTURES)
        ]


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
