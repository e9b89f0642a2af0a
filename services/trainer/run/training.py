"""A run from its configuration to its result; called by `__main__` in every process of it.

Lightning starts the other processes of a node by running the same command again.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Literal

import lightning
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from services.trainer.run.average import WeightAverage
from services.trainer.run.checkpoint import Identity, load_weights, read_position
from services.trainer.run.components import Components
from services.trainer.run.configuration import RunConfiguration
from services.trainer.run.export import RESULT_FOLDER, export_result
from services.trainer.run.learner import Learner, MicroSteps
from services.trainer.run.memory import keep_memory
from services.trainer.run.preparation import prepare
from services.trainer.run.reading import CheckedRun
from services.trainer.run.reporting import LOSSES_FILE, RunReport
from services.trainer.run.stopping import StopFlag
from services.trainer.run.store import CheckpointStore, CheckpointUpload
from services.trainer.run.supervision import CHECKPOINT_FOLDER, LAST, SAMPLE_FOLDER, Supervision
from services.trainer.run.violations import RefusedError, StoppedError, violation
from services.trainer.run.weights import choose_weights, trained_parameters

_LOGGER = logging.getLogger(__name__)

OUT_OF_MEMORY_ERRORS = (MemoryError, torch.OutOfMemoryError)

_PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "float32": "32-true",
    "bfloat16": "bf16-mixed",
    "float16": "16-mixed",
}
# Lightning's advice that does not apply: counters come from the loader, so that there is nothing to
# prefetch, and frozen parts are meant to be in evaluation mode. And a deprecation between it and
# torch, which goes with Lightning 2.7.
_IRRELEVANT = (
    ".*does not have many workers.*",
    ".*in eval mode at the start of training.*",
    ".*LeafSpec.*is deprecated.*",
)


def train(run: CheckedRun, *, report: RunReport, stop: StopFlag) -> Path:
    """Train, or go on, and return the result's folder.

    Raises `StoppedError` where `stop` was set, and `RefusedError`, `BaseModelError` or OSError.
    """
    configuration = run.configuration
    result = configuration.output / RESULT_FOLDER
    step_count, prior = configuration.optimization.step_count, configuration.prior
    if result.is_dir():
        class_picture_count = 0 if prior is None else prior.image_count
        report.update(
            step_count=step_count, step=step_count, class_picture_count=class_picture_count
        )
        return result
    _be_deterministic()
    device = _device(configuration)
    world_size = configuration.device.process_count * configuration.device.node_count
    identity = Identity.of(run.fingerprint(), world_size)
    last = configuration.output / CHECKPOINT_FOLDER / LAST
    url = configuration.checkpoint_store
    store = None if url is None else CheckpointStore(url)
    if store is not None and not last.is_file() and store.fetch(last):
        store.fetch(configuration.output / LOSSES_FILE)
        _LOGGER.info("the checkpoint comes from %s", url)
    position = read_position(last, identity)
    report.update(step_count=step_count, step=position.step if position else 0)
    components = Components(run.base)
    prepared = prepare(
        run,
        components,
        steps_done=0 if position is None else position.step,
        device=device,
        report=report,
        stop=stop,
    )
    choose_weights(components, configuration, device)
    parameters = trained_parameters(components)
    decay = configuration.optimization.ema_decay
    average = None if decay is None else WeightAverage(parameters, decay)
    if position is not None:
        load_weights(last, parameters, average.tensors if average else None)
    learner = Learner(run, components, prepared.sources, prepared.encode_prompts)
    if position is not None:
        learner.position = position
    if learner.position.step < step_count:
        upload = None if store is None else CheckpointUpload(store)
        supervision = Supervision(
            run,
            components,
            identity=identity,
            average=average,
            upload=upload,
            report=report,
            stop=stop,
        )
        keep_memory()
        try:
            _fit(configuration, learner, supervision, identity)
        finally:
            if upload is not None:
                upload.finish()
        stop.listen()  # Lightning leaves with the signals at their defaults
    if learner.position.step < step_count:
        raise StoppedError(f"stopped after step {learner.position.step} of {step_count}")
    if learner.global_rank:
        return result
    newest = configuration.output / SAMPLE_FOLDER / f"step-{step_count:06d}"
    samples = sorted(newest.glob("*.png"))
    if average is None:
        return export_result(
            run, components, identity=identity, position=learner.position, samples=samples
        )
    with average.applied():
        return export_result(
            run, components, identity=identity, position=learner.position, samples=samples
        )


def _be_deterministic() -> None:
    # cuBLAS reads it at its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    # What has no deterministic form on a device is warned of, not refused.
    torch.use_deterministic_algorithms(True, warn_only=True)


def _device(configuration: RunConfiguration) -> torch.device:
    wanted = configuration.device.accelerator
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RefusedError(
            [violation("device.accelerator", "NO_DEVICE", "there is no CUDA device")]
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        if configuration.optimization.precision == "float16":
            message = "float16 needs CUDA; use bfloat16"
            raise RefusedError([violation("optimization.precision", "NO_DEVICE", message)])
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _fit(
    configuration: RunConfiguration,
    learner: Learner,
    supervision: Supervision,
    identity: Identity,
) -> None:
    optimization, device = configuration.optimization, configuration.device
    steps_left = optimization.step_count - learner.position.step
    accumulation = optimization.accumulation
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = lightning.Trainer(
        accelerator={"cpu": "cpu", "cuda": "cuda", None: "auto"}[device.accelerator],
        devices=device.process_count,
        num_nodes=device.node_count,
        strategy="ddp" if identity.world_size > 1 else "auto",
        precision=_PRECISIONS[optimization.precision],
        max_epochs=1,
        max_steps=steps_left,
        accumulate_grad_batches=accumulation,
        gradient_clip_val=optimization.max_gradient_norm or None,
        callbacks=[supervision],
        logger=_loggers(configuration, learner.position.step, identity),
        default_root_dir=configuration.output,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        # Set by `_be_deterministic`.
        deterministic="warn",
        benchmark=False,
    )
    first = learner.position.step * accumulation
    loader = DataLoader(MicroSteps(first, optimization.step_count * accumulation), batch_size=None)
    with warnings.catch_warnings():
        for message in _IRRELEVANT:
            warnings.filterwarnings("ignore", message)
        try:
            trainer.fit(learner, loader)
        except SIGTERMException:
            # It came before `Supervision` had the signals; no step was lost.
            _LOGGER.info("asked to stop before the first step")
        finally:
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger) and trainer.is_global_zero:
                    logger.experiment.finish()


def _loggers(configuration: RunConfiguration, step: int, identity: Identity) -> list[Logger]:
    tracking = configuration.tracking
    loggers: list[Logger] = []
    if tracking.tensorboard:
        # What an interrupted process wrote after its last checkpoint is written again.
        purge_step = step + 1 if step else None
        loggers.append(
            TensorBoardLogger(
                configuration.output, name="", version="tensorboard", purge_step=purge_step
            )
        )
    if tracking.wandb_project is not None:
        loggers.append(
            WandbLogger(
                project=tracking.wandb_project,
                save_dir=configuration.output,
                offline=tracking.wandb_offline,
                id=identity.fingerprint[:16],
                resume=None if tracking.wandb_offline else "allow",
                log_model=False,
            )
        )
    return loggers
