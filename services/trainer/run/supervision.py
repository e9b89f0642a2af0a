"""What happens between optimizer steps: averaging, reports, validation, checkpoints, stopping.

A Lightning callback. Every process follows the average; the first one alone measures and writes.
A process that is asked to stop tells the others, so that all stop after the same step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from services.trainer.run.average import WeightAverage
from services.trainer.run.checkpoint import Identity, load_optimizer, save_checkpoint
from services.trainer.run.components import Components
from services.trainer.run.learner import Learner
from services.trainer.run.objective import Losses
from services.trainer.run.reading import CheckedRun
from services.trainer.run.reporting import LOSSES_FILE, RunReport, StepLosses
from services.trainer.run.samples import draw_samples
from services.trainer.run.stopping import StopFlag
from services.trainer.run.store import CheckpointUpload

CHECKPOINT_FOLDER = "checkpoints"
LAST = "last.safetensors"
BEST = "best.safetensors"
SAMPLE_FOLDER = "samples"


class Supervision(lightning.Callback):
    """Steers one fit."""

    def __init__(
        self,
        run: CheckedRun,
        components: Components,
        *,
        identity: Identity,
        average: WeightAverage | None,
        upload: CheckpointUpload | None,
        report: RunReport,
        stop: StopFlag,
    ) -> None:
        self._run, self._components = run, components
        self._identity, self._average, self._upload = identity, average, upload
        self._report, self._stop = report, stop
        self._section = run.configuration.optimization
        self._folder = run.configuration.output / CHECKPOINT_FOLDER
        self._started_at = 0.0
        self._steps_here = 0

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Continue where the checkpoint is."""
        learner = _learner(pl_module)
        if learner.position.step:
            optimizer = trainer.optimizers[0]
            load_optimizer(self._folder / LAST, learner.parameters_by_name, optimizer)
            if learner.position.scaler is not None:
                trainer.precision_plugin.load_state_dict(learner.position.scaler)
        if trainer.is_global_zero:
            self._report.rewind(learner.position.step)
            self._report.update(state="running", step=learner.position.step)
        self._started_at = time.monotonic()

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Take the signals back: Lightning's own handler ends the process at once, with 0."""
        self._stop.listen()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Do what is due if this micro-step ended an optimizer step."""
        learner = _learner(pl_module)
        if (batch + 1) % self._section.accumulation:
            return
        learner.position = replace(learner.position, step=learner.position.step + 1)
        step = learner.position.step
        if self._average is not None:
            self._average.update(step)
        self._report_losses(trainer, learner)
        configuration = self._run.configuration
        is_last = step == self._section.step_count
        stopping = trainer.strategy.reduce_boolean_decision(self._stop.is_set, all=False)
        if trainer.is_global_zero:
            if is_last or _is_due(step, configuration.validation.interval):
                self._validate(trainer, learner)
            if is_last or stopping or _is_due(step, configuration.checkpoint_interval):
                self._save(trainer, learner, LAST)
        if stopping:
            trainer.should_stop = True

    def _report_losses(self, trainer: lightning.Trainer, learner: Learner) -> None:
        means = trainer.strategy.reduce(_means(learner.step_losses), reduce_op="mean")
        learner.step_losses.clear()
        if not trainer.is_global_zero:
            return
        total, instance, prior = (float(value) for value in means)
        step = learner.position.step
        losses = StepLosses(
            step=step,
            loss=total,
            instance_loss=instance,
            prior_loss=None if self._run.configuration.prior is None else prior,
            learning_rate=learner.learning_rate,
        )
        self._report.losses(losses)
        self._steps_here += 1
        pace_s = (time.monotonic() - self._started_at) / self._steps_here
        self._report.update(
            step=step,
            losses=losses,
            seconds_per_step=pace_s,
            eta_s=pace_s * (self._section.step_count - step),
        )
        metrics = {"loss": total, "loss/instance": instance, "learning_rate": losses.learning_rate}
        if losses.prior_loss is not None:
            metrics["loss/prior"] = losses.prior_loss
        _log(trainer, metrics, step)

    def _validate(self, trainer: lightning.Trainer, learner: Learner) -> None:
        """Measure and draw with what would come out now; keep the best."""
        step = learner.position.step
        folder = self._run.configuration.output / SAMPLE_FOLDER / f"step-{step:06d}"
        precision = trainer.precision_plugin.forward_context
        modules = list(self._components.loaded.values())
        with self._average.applied() if self._average else nullcontext():
            loss = _evaluated(learner, modules, precision())
            paths = draw_samples(
                self._run,
                self._components,
                folder,
                encode_prompts=learner.encode_prompts,
                device=learner.device,
                precision=precision,
            )
        if learner.position.best_loss is None or loss < learner.position.best_loss:
            learner.position = replace(learner.position, best_loss=loss, best_step=step)
            self._save(trainer, learner, BEST)
        _log(trainer, {"loss/validation": loss}, step)
        _log_pictures(trainer, paths, step)
        names = tuple(str(p.relative_to(self._run.configuration.output)) for p in paths)
        self._report.update(validation_loss=loss, samples=names)

    def _save(self, trainer: lightning.Trainer, learner: Learner, name: str) -> None:
        scaler = trainer.precision_plugin.state_dict() or None
        learner.position = replace(learner.position, scaler=scaler)
        save_checkpoint(
            self._folder / name,
            identity=self._identity,
            position=learner.position,
            parameters=learner.parameters_by_name,
            optimizer=_unwrapped(trainer.optimizers[0]),
            average=self._average.tensors if self._average else None,
        )
        if self._upload is not None:
            # First the curve: it must not end before the checkpoint beside it.
            self._upload.submit(self._run.configuration.output / LOSSES_FILE)
            self._upload.submit(self._folder / name)


def _learner(module: lightning.LightningModule) -> Learner:
    assert isinstance(module, Learner)
    return module


def _unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    return cast(torch.optim.Optimizer, getattr(optimizer, "optimizer", optimizer))


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _means(losses: list[Losses]) -> Tensor:
    """Total, instance and prior (3,); a prior that is not measured is 0."""
    rows = [
        torch.stack([one.total, one.instance, one.instance * 0 if one.prior is None else one.prior])
        for one in losses
    ]
    return torch.stack(rows).mean(dim=0)


def _evaluated(
    learner: Learner, modules: Sequence[torch.nn.Module], precision: AbstractContextManager[None]
) -> float:
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        with precision:
            return learner.validation_loss()
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


def _log(trainer: lightning.Trainer, metrics: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)


def _log_pictures(trainer: lightning.Trainer, paths: list[Path], step: int) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image("samples", [str(path) for path in paths], step=step)
        elif isinstance(logger, TensorBoardLogger):
            for path in paths:
                pixels = np.asarray(Image.open(path))
                logger.experiment.add_image(f"samples/{path.stem}", pixels, step, dataformats="HWC")
