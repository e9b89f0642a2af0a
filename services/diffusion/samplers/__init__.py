"""Samplers as tables of coefficients; see `trajectory.py` for the idea.

`plan` compiles a sampler for a schedule and a step count; `collate`, `scale_input`, `advance` and
`denoise` run any mixture of the results in one batch.
"""

from services.diffusion.samplers.advance import StepBatch, advance, collate, denoise, scale_input
from services.diffusion.samplers.registry import SAMPLERS, Sampler, plan
from services.diffusion.samplers.trajectory import Trajectory

__all__ = [
    "SAMPLERS",
    "Sampler",
    "StepBatch",
    "Trajectory",
    "advance",
    "collate",
    "denoise",
    "plan",
    "scale_input",
]
