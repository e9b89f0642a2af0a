"""A sampling run as tables: one small matrix for every call of the model.

The solvers offered here are linear in the state, the model's output, one memory and fresh noise.
A sampler therefore *compiles* to a `Trajectory`, whose rows say how to call the model and how to
advance. Rows of different samplers, schedules and step counts mix in one batch (`advance.py`).
The sampler modules build trajectories; `registry.plan` caches them; the batcher reads them.
Nothing here touches torch, noise or latents.

Throughout, a state at noise level (signal a, noise b) is distributed as `a * x0 + b * eps` with
eps ~ N(0, I). Variance-preserving samplers have a^2 + b^2 = 1, variance-exploding ones a = 1,
b = sigma (Karras et al. 2022, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from services.diffusion.schedule import PredictionType

ScalarT = TypeVar("ScalarT", bound=np.generic)
Float32Array = npt.NDArray[np.float32]

# Columns of a coefficient matrix, and of `Call.state` and `Call.memory`. The second column weighs
# the denoised estimate while a sampler is written down and the raw model output once compiled.
STATE, OUTPUT, MEMORY, NOISE = range(4)
KEEP_NOTHING = (0.0, 0.0, 0.0, 0.0)

Weights = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseLevel:
    """Scales of signal and noise in a state `signal * x0 + noise * eps`."""

    signal: float
    noise: float

    @property
    def input_scale(self) -> float:
        """Factor that brings the state to unit variance for data of unit variance."""
        return float(1.0 / np.hypot(self.signal, self.noise))

    def denoised_weights(self, prediction_type: PredictionType) -> tuple[float, float]:
        """Weights (p, q) of the clean estimate `x0 = p * x + q * output`.

        Source: Salimans and Ho 2022, section 4 and appendix D, for a state of any scale.
        Raises `ValueError` for a noise prediction at zero signal, where x0 is undetermined.
        """
        if prediction_type == "sample":
            return 0.0, 1.0
        if prediction_type == "v_prediction":
            scale = self.input_scale
            return self.signal * scale**2, -self.noise * scale
        if self.signal == 0.0:
            raise ValueError(
                "prediction_type epsilon is undetermined at zero signal-to-noise ratio"
            )
        return 1.0 / self.signal, -self.noise / self.signal


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One model call, written as the papers write it: in terms of the denoised estimate.

    `state` and `memory` weigh (x, denoised, memory, noise) to give the next x and next memory.
    `step` counts from 1 and names the user-visible step that the call belongs to.
    """

    timestep: float
    level: NoiseLevel
    step: int
    state: Weights
    memory: Weights = KEEP_NOTHING


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trajectory:
    """A sampling run of `call_count` model calls; arrays are read-only and shared by all rows.

    A row starts from `x = initial_scale * n` with n ~ N(0, I), or for a clean latent z from
    `x = signal_scale[0] * z + noise_scale[0] * n`, and with memory zero. Call i then is

        output       = model(input_scale[i] * x, timesteps[i])        guided, raw prediction
        [x, memory]  = coefficients[i] @ [x, output, memory, noise]   noise only if needs_noise[i]

    After the last call x is the finished latent.
    """

    timesteps: Float32Array
    """(calls,) what the model is told; may be fractional."""
    input_scale: Float32Array
    """(calls,) factor on x before the model."""
    denoised: Float32Array
    """(calls, 2) weights (p, q) of the clean estimate `p * x + q * output`, for previews."""
    coefficients: Float32Array
    """(calls, 2, 4) the update."""
    needs_noise: npt.NDArray[np.bool_]
    """(calls,) whether the update reads a fresh N(0, I) draw."""
    step_of_call: npt.NDArray[np.int64]
    """(calls,) the step, counted from 1, that the call belongs to; never decreasing."""
    signal_scale: Float32Array
    """(calls + 1,) signal in the state before call i; the last entry is the finished latent."""
    noise_scale: Float32Array
    """(calls + 1,) noise in the state before call i; the last entry is the finished latent."""
    initial_scale: float
    """Factor on unit noise for the state before the first call of a run without a source image."""

    @property
    def call_count(self) -> int:
        """Number of model calls."""
        return len(self.timesteps)

    @property
    def step_count(self) -> int:
        """Number of user-visible steps; fewer than planned where strength < 1."""
        return int(self.step_of_call[-1])


def compile_trajectory(
    calls: Sequence[Call],
    *,
    prediction_type: PredictionType,
    final_level: NoiseLevel,
    initial_scale: float,
) -> Trajectory:
    """Fold the model's parameterisation into the update of every call.

    Computed in float64, stored in float32. `calls` must not be empty; `final_level` is the level
    of the finished latent. Raises `ValueError` where the prediction does not determine x0.
    """
    denoised = np.array([call.level.denoised_weights(prediction_type) for call in calls])
    weights = np.array([(call.state, call.memory) for call in calls], dtype=np.float64)
    coefficients = weights.copy()
    coefficients[:, :, STATE] += weights[:, :, OUTPUT] * denoised[:, None, 0]
    coefficients[:, :, OUTPUT] *= denoised[:, None, 1]
    levels = [*(call.level for call in calls), final_level]
    return Trajectory(
        timesteps=_frozen([call.timestep for call in calls]),
        input_scale=_frozen([call.level.input_scale for call in calls]),
        denoised=_frozen(denoised),
        coefficients=_frozen(coefficients),
        needs_noise=_read_only(np.any(coefficients[:, :, NOISE] != 0.0, axis=1)),
        step_of_call=_read_only(np.array([call.step for call in calls], dtype=np.int64)),
        signal_scale=_frozen([level.signal for level in levels]),
        noise_scale=_frozen([level.noise for level in levels]),
        initial_scale=initial_scale,
    )


def _frozen(values: npt.ArrayLike) -> Float32Array:
    array = np.array(values, dtype=np.float32)
    array.flags.writeable = False
    return array


def _read_only(array: npt.NDArray[ScalarT]) -> npt.NDArray[ScalarT]:
    array.flags.writeable = False
    return array
