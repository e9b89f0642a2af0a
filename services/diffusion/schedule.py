"""The noise schedule a model was trained with, and the timesteps a sampler visits on it.

Built once per model from the `scheduler_config.json` of a diffusers folder; read by the samplers.
It holds what belongs to the model. Which sampler the file names, and that sampler's own options,
are deliberately ignored: the sampler comes with the request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]

Float64Array = npt.NDArray[np.float64]

# Signal power that stands for zero where a sampler divides by the signal: float16's smallest
# positive number, as in diffusers' Euler and DPM-Solver++ schedulers.
LEAST_SIGNAL_POWER = 2.0**-24

_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_MAX_BETA = 0.999


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NoiseSchedule:
    """Forward process of T training steps: `x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps`.

    Compared by identity, so that tables can be cached per schedule.
    """

    alphas_cumprod: Float64Array
    """(T,) abar_t, falling strictly within (0, 1); the last may be 0 (zero terminal SNR)."""
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: TimestepSpacing | None = None
    """None: every sampler keeps the default that it has in diffusers."""
    steps_offset: int = 0
    """Added to leading timesteps; 0 or 1, so that none exceeds the last training step."""
    final_alpha_cumprod: float = 1.0
    """abar after DDIM's last step: 1, or `alphas_cumprod[0]` where `set_alpha_to_one` is false."""

    def __post_init__(self) -> None:
        powers = self.alphas_cumprod.copy()
        if powers.ndim != 1 or len(powers) < 2:
            raise ValueError("alphas_cumprod must hold at least two training steps")
        falls = bool(np.all(np.diff(powers) < 0.0))
        if not (falls and powers[0] < 1.0 and powers[-1] >= 0.0):
            raise ValueError("alphas_cumprod must fall strictly within (0, 1)")
        if self.steps_offset not in (0, 1):
            raise ValueError(f"steps_offset must be 0 or 1, not {self.steps_offset}")
        powers.flags.writeable = False
        object.__setattr__(self, "alphas_cumprod", powers)

    @property
    def train_step_count(self) -> int:
        """Number of training steps T."""
        return len(self.alphas_cumprod)

    @property
    def sigmas(self) -> Float64Array:
        """(T,) noise-to-signal ratios `sqrt((1 - abar) / abar)`, rising and finite."""
        zero = self.alphas_cumprod == 0.0
        powers: Float64Array = np.where(zero, LEAST_SIGNAL_POWER, self.alphas_cumprod)
        return np.sqrt((1.0 - powers) / powers)

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """Read a diffusers `scheduler_config.json`.

        Raises `ValueError` naming the key that is missing, malformed or not supported. The table
        is computed in float32, because that is what the model saw in training.
        """
        _refuse_unsupported(config)
        alphas_cumprod = torch.cumprod(1.0 - _betas(config), dim=0).double().numpy()
        keeps_first_alpha = config.get("set_alpha_to_one", True) is False
        spacing = _choice(config, "timestep_spacing", get_args(TimestepSpacing), "")
        prediction = _choice(config, "prediction_type", get_args(PredictionType), "epsilon")
        return cls(
            alphas_cumprod=alphas_cumprod,
            prediction_type=cast(PredictionType, prediction),
            timestep_spacing=cast(TimestepSpacing, spacing) if spacing else None,
            steps_offset=_integer(config, "steps_offset", 0),
            final_alpha_cumprod=float(alphas_cumprod[0]) if keeps_first_alpha else 1.0,
        )


def spaced_timesteps(
    schedule: NoiseSchedule, step_count: int, *, default_spacing: TimestepSpacing
) -> Float64Array:
    """Training steps (step_count,) to visit, falling; fractional for linspace.

    Source: Lin et al. 2024, table 2.
    """
    train_count = schedule.train_step_count
    spacing = schedule.timestep_spacing or default_spacing
    if spacing == "linspace":
        return np.linspace(0, train_count - 1, step_count)[::-1]
    if spacing == "leading":
        stride = train_count // step_count
        return np.arange(step_count, dtype=float)[::-1] * stride + schedule.steps_offset
    return trailing_timesteps(train_count, step_count)


def trailing_timesteps(train_count: int, step_count: int) -> Float64Array:
    """Training steps (step_count,) counted back from the last by T / step_count, rounded."""
    # Rounding can make arange one longer than it should be.
    steps = np.arange(train_count, 0, -train_count / step_count, dtype=float)[:step_count]
    return steps.round() - 1.0


def timestep_of_sigma(schedule: NoiseSchedule, sigmas: Float64Array) -> Float64Array:
    """Fractional training step at which the noise-to-signal ratio is sigma, log-linear between."""
    steps = np.arange(schedule.train_step_count, dtype=np.float64)
    return np.interp(np.log(sigmas), np.log(schedule.sigmas), steps)


def _refuse_unsupported(config: Mapping[str, object]) -> None:
    for key in ("clip_sample", "thresholding", "use_flow_sigmas"):
        if config.get(key):
            raise ValueError(f"{key} is not supported: it is not meant for latent diffusion")
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"timestep_type {config['timestep_type']!r} is not supported")
    if str(config.get("variance_type", "")).startswith("learned"):
        raise ValueError("variance_type with a learned variance is not supported")


def _betas(config: Mapping[str, object]) -> Tensor:
    trained = config.get("trained_betas")
    beta_schedule = _choice(config, "beta_schedule", _BETA_SCHEDULES, "linear")
    if trained is not None:
        betas = _trained_betas(config, trained)
    elif beta_schedule == "squaredcos_cap_v2":
        betas = _cosine_betas(_integer(config, "num_train_timesteps", 1000))
    else:
        betas = _linear_betas(config, power=2 if beta_schedule == "scaled_linear" else 1)
    if not bool(torch.all((betas > 0.0) & (betas < 1.0))):
        raise ValueError("betas must lie strictly between 0 and 1")
    return _zero_terminal_snr(betas) if config.get("rescale_betas_zero_snr") else betas


def _trained_betas(config: Mapping[str, object], trained: object) -> Tensor:
    if not isinstance(trained, Sequence) or isinstance(trained, str):
        raise ValueError("trained_betas must be a list of numbers")
    if _integer(config, "num_train_timesteps", len(trained)) != len(trained):
        raise ValueError("trained_betas must have num_train_timesteps entries")
    if not all(isinstance(beta, int | float) for beta in trained):
        raise ValueError("trained_betas must be a list of numbers")
    return torch.tensor(trained, dtype=torch.float32)


def _linear_betas(config: Mapping[str, object], *, power: int) -> Tensor:
    count = _integer(config, "num_train_timesteps", 1000)
    start, end = (_number(config, key) ** (1 / power) for key in ("beta_start", "beta_end"))
    return torch.linspace(start, end, count, dtype=torch.float32) ** power


def _cosine_betas(count: int) -> Tensor:
    """Nichol and Dhariwal 2021, equation 17."""

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [alpha_bar((i + 1) / count) / alpha_bar(i / count) for i in range(count)]
    return torch.tensor([min(1.0 - ratio, _MAX_BETA) for ratio in ratios], dtype=torch.float32)


def _zero_terminal_snr(betas: Tensor) -> Tensor:
    """Lin et al. 2024, algorithm 1."""
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    powers = ((root - last) * (first / (first - last))) ** 2
    return 1.0 - torch.cat([powers[:1], powers[1:] / powers[:-1]])


def _choice(config: Mapping[str, object], key: str, allowed: Sequence[str], default: str) -> str:
    value = config.get(key, default)
    if value != default and value not in allowed:
        raise ValueError(f"{key} {value!r} is not supported; known are {', '.join(allowed)}")
    return str(value)


def _integer(config: Mapping[str, object], key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} must be an integer, not {value!r}")
    return value


def _number(config: Mapping[str, object], key: str) -> float:
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0.0:
        raise ValueError(f"{key} must be a positive number, not {value!r}")
    return float(value)
