"""The training loop shared by all stages: budget, schedule, EMA, checkpoints, resume.

Called by `stages`. Every draw of step n comes from a generator seeded
with (seed, n, rank), so the full state of a run is weights, EMA, AdamW moments, step and elapsed
time; with a step budget a resumed CPU run is bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.recipe.parallel import Worker

logger = logging.getLogger(__name__)

_SYNC_EVERY = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How long and how hard to train.

    Exactly one of `step_count` and `budget_s` is set: a budget in seconds stretches the schedule
    over the time that is left, however fast the machine is. The rate stays at its peak until the
    last `cooldown` of the run, in which it falls along half a cosine: with a short cooldown the
    goal may move while the run is on (Hägele et al. 2024).
    """

    learning_rate: float
    step_count: int | None = None
    budget_s: float | None = None
    warmup_steps: int = 150
    ema_decay: float = 0.998
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    cooldown: float = 1.0
    final_rate: float = 0.02
    seed: int = 0
    save_every_s: float = 120.0
    log_every: int = 25
    watch_every: int = 500

    def __post_init__(self) -> None:
        """Raise ValueError unless there is exactly one budget."""
        if (self.step_count is None) == (self.budget_s is None):
            raise ValueError("set exactly one of step_count and budget_s")

    def progress(self, step: int, elapsed_s: float) -> float:
        """The share of the run that is done, from 0 to 1."""
        done = step / self.step_count if self.step_count else elapsed_s / (self.budget_s or 1.0)
        return min(1.0, done)

    def rate(self, step: int, progress: float) -> float:
        """Linear warm-up, the peak, then a cosine down to `final_rate` of the peak."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        fallen = max(0.0, 1.0 - (1.0 - progress) / self.cooldown)
        cosine = 0.5 * (1.0 + math.cos(math.pi * fallen))
        return self.learning_rate * warmup * (self.final_rate + (1.0 - self.final_rate) * cosine)


class State:
    """Weights, their moving average, AdamW moments, step and time of one run."""

    def __init__(self, modules: dict[str, nn.Module], plan: Plan) -> None:
        """Start at step 0 with the modules' present weights."""
        self.modules = modules
        self.parameters: dict[str, nn.Parameter] = {
            f"{name}.{key}": parameter
            for name, module in modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.ema = {key: p.detach().clone() for key, p in self.parameters.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=plan.learning_rate,
            betas=plan.betas,
            weight_decay=plan.weight_decay,
            fused=True,
        )
        self.step = 0
        self.elapsed_s = 0.0
        self.cpu_s = 0.0

    def update_ema(self, decay: float) -> None:
        """Move the average towards the weights; the decay is shorter while the run is young."""
        weight = 1.0 - min(decay, (1.0 + self.step) / (10.0 + self.step))
        live = [p.detach() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.ema.values()), live, weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the modules hold the averaged weights."""
        live = {key: p.detach().clone() for key, p in self.parameters.items()}
        self._put(self.ema)
        try:
            yield
        finally:
            self._put(live)

    def _put(self, weights: dict[str, Tensor]) -> None:
        for key, parameter in self.parameters.items():
            parameter.data.copy_(weights[key])

    def save_averaged(self, path: Path) -> None:
        """Write the averaged weights alone, float16, atomically; `load_ema` reads them."""
        tensors = {f"ema/{key}": t.half().contiguous().cpu() for key, t in self.ema.items()}
        self._write(tensors, path)

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file, atomically."""
        tensors: dict[str, Tensor] = {}
        for key, parameter in self.parameters.items():
            tensors[f"live/{key}"] = parameter.detach()
            tensors[f"ema/{key}"] = self.ema[key]
            moments = self.optimizer.state.get(parameter, {})
            for name in ("exp_avg", "exp_avg_sq"):
                if name in moments:
                    tensors[f"{name}/{key}"] = moments[name]
        self._write({key: t.contiguous().cpu() for key, t in tensors.items()}, path)

    def _write(self, tensors: dict[str, Tensor], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ("step", "elapsed_s", "cpu_s")
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, {name: str(getattr(self, name)) for name in names})
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Continue from `path`; raises KeyError when it is of another architecture."""
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            keys = set(file.keys())
            for key, parameter in self.parameters.items():
                parameter.data.copy_(file.get_tensor(f"live/{key}"))
                self.ema[key].copy_(file.get_tensor(f"ema/{key}"))
                if f"exp_avg/{key}" in keys:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(metadata["step"]), device=parameter.device),
                        "exp_avg": file.get_tensor(f"exp_avg/{key}").to(parameter),
                        "exp_avg_sq": file.get_tensor(f"exp_avg_sq/{key}").to(parameter),
                    }
        self.step, self.elapsed_s = int(metadata["step"]), float(metadata["elapsed_s"])
        self.cpu_s = float(metadata.get("cpu_s", 0.0))


def load_ema(path: Path, modules: dict[str, nn.Module]) -> int:
    """Put the averaged weights of a checkpoint into `modules`; returns its step."""
    with safe_open(path, "pt") as file:
        for name, module in modules.items():
            for key, parameter in module.named_parameters():
                stored = f"ema/{name}.{key}"
                if stored in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                    parameter.data.copy_(file.get_tensor(stored))
        return int(file.metadata()["step"])


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
    and leaves with SystemExit(143) on every worker.
    """
    state = State(modules, plan)
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
    counted = 0
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
    if worker.leads:
        state.save(checkpoint)


def _step(
    state: State, loss_function: LossFunction, plan: Plan, progress: float, worker: Worker
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(
        ((plan.seed * 1_000_003 + state.step) * 64 + worker.rank) % (2**63)
    )
    rate = plan.rate(state.step, progress)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    with worker.autocast():
        loss, metrics = loss_function(generator)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = list(state.parameters.values())
    worker.average_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, plan.clip_norm)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    state.update_ema(plan.ema_decay)
    # Kept as tensors: a float would have a GPU wait for every step.
    return {"loss": loss.detach(), **{name: value.detach() for name, value in metrics.items()}}


def _log(state: State, progress: float, means: dict[str, float]) -> None:
    record = {"step": state.step, "progress": round(progress, 4)}
    logger.info("%s", json.dumps({**record, "elapsed_s": round(state.elapsed_s, 1), **means}))
