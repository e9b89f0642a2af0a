"""The training loop shared by all stages: steps, logs, checkpoints, resume.

Called by `stages`. Every draw of step n comes from a generator seeded with (seed, n, rank), so that
with a step budget a resumed CPU run is bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from models.recipe.parallel import Worker
from models.recipe.plan import Plan
from models.recipe.state import State

logger = logging.getLogger(__name__)

_SYNC_EVERY = 10

LossFunction = Callable[[torch.Generator], tuple[Tensor, dict[str, Tensor]]]
Watcher = Callable[[State], None]


def train(
    modules: dict[str, nn.Module],
    loss_function: LossFunction,
    plan: Plan,
    checkpoint: Path,
    worker: Worker,
    watch: Watcher | None = None,
) -> State:
    """Train until the plan's budget is spent, resuming from `checkpoint` if it exists.

    `watch` is called by the leading worker at every multiple of `watch_every`. SIGTERM saves
    and leaves with SystemExit(143) on every worker. A spent budget leaves `checkpoint` alone.
    """
    state = State(modules, plan, worker)
    if checkpoint.exists():
        state.load(checkpoint)
        logger.info("resumed %s at step %d", checkpoint.name, state.step)
    worker.broadcast_modules(modules.values())
    stopping: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    try:
        _run(state, loss_function, plan, checkpoint, worker, watch, stopping)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return state


def _run(
    state: State,
    loss_function: LossFunction,
    plan: Plan,
    checkpoint: Path,
    worker: Worker,
    watch: Watcher | None,
    stopping: list[int],
) -> None:
    clock = saved_at = time.monotonic()
    cpu_clock = time.process_time()
    progress = plan.progress(state.step, state.elapsed_s)
    sums: dict[str, Tensor] = {}
    counted, begun_at = 0, state.step
    while progress < 1.0:
        metrics = _step(state, loss_function, plan, progress, worker)
        for key, value in metrics.items():
            sums[key] = sums.get(key, torch.zeros_like(value)) + value
        counted += 1
        now = time.monotonic()
        state.elapsed_s, clock = state.elapsed_s + now - clock, now
        cpu_now = time.process_time()
        state.cpu_s, cpu_clock = state.cpu_s + cpu_now - cpu_clock, cpu_now
        if plan.step_count:
            progress = plan.progress(state.step, 0.0)
        if worker.world_size == 1 or state.step % _SYNC_EVERY == 0:
            shared = [plan.progress(state.step, state.elapsed_s), float(bool(stopping))]
            progress, stop = worker.share(shared)
            if stop:
                if worker.leads:
                    state.save(checkpoint)
                raise SystemExit(143)
        if worker.leads and state.step % plan.log_every == 0:
            means = {key: round(float(total) / counted, 4) for key, total in sums.items()}
            _log(state, progress, means)
            sums, counted = {}, 0
        if worker.leads and watch is not None and state.step % plan.watch_every == 0:
            watch(state)
        if worker.leads and now - saved_at > plan.save_every_s:
            state.save(checkpoint)
            saved_at = now
    if worker.leads and state.step > begun_at:
        state.save(checkpoint)


def _step(
    state: State, loss_function: LossFunction, plan: Plan, progress: float, worker: Worker
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(
        ((plan.seed * 1_000_003 + state.step) * 64 + worker.rank) % (2**63)
    )
    rate = plan.rate(state.step, progress)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    with worker.autocast():
        loss, metrics = loss_function(generator)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = list(state.parameters.values())
    worker.average_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, plan.clip_norm)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    state.step += 1
    state.update_ema(plan.ema_decay)
    # Kept as tensors: a float would have a GPU wait for every step.
    return {"loss": loss.detach(), **{name: value.detach() for name, value in metrics.items()}}


def _log(state: State, progress: float, means: dict[str, float]) -> None:
    record = {"step": state.step, "progress": round(progress, 4)}
    logger.info("%s", json.dumps({**record, "elapsed_s": round(state.elapsed_s, 1), **means}))
