"""What the rest of the diffusion service sees of a model: one protocol and plain data.

The batcher drives a `LoadedModel`, the servicer lists and validates against its data, and
`families.loading.load_model` makes one. Nothing here loads, computes or knows an architecture.

Shape legend: B rows of a batch, N prompts, C latent channels, h and w latent sides, H and W image
sides in pixels, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from services.diffusion.schedule import NoiseSchedule
from services.graphs.graph import DeviceName, PrecisionName, RuntimeName
from services.runtime.device_model import DeviceModel

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """Which model to load and how to run it; one entry of the service's settings."""

    name: str
    """Name for requests."""
    path_or_hub_id: str
    """A folder in diffusers layout, or the id of one on the model hub."""
    runtime: RuntimeName = "auto"
    """`auto`: the fastest one measured for the device; see `graphs.selection`."""
    device: DeviceName = "auto"
    """`auto`: the first CUDA device if there is one, else the CPU."""
    thread_count: int | None = None
    """Threads that compute on a CPU; None: one for every core that this process may use."""
    cache_dir: Path = Path(".cache/limner")
    """Where exported graphs are kept."""
    precision: PrecisionName = "auto"
    """`int8`: convolutions of denoiser and decoder in 8 bits, on a CPU alone."""
    compiled: bool = False
    """On CUDA, run through `torch.compile`: faster, but every new batch size costs seconds once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """Limits of image requests; all bounds are inclusive. Sides in pixels."""

    min_side: int
    max_side: int
    side_multiple: int
    max_pixel_count: int
    min_step_count: int
    max_step_count: int
    min_guidance_scale: float
    max_guidance_scale: float
    max_sample_count: int
    max_prompt_length: int
    """Characters, not tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDefaults:
    """Values used where a request leaves them out."""

    width: int
    height: int
    step_count: int
    guidance_scale: float
    sampler: str
    """A name of `samplers.registry.SAMPLERS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The words of a model with a closed vocabulary."""

    concepts: tuple[str, ...]
    """Things that it can draw, for example `red apple`."""
    styles: tuple[str, ...]
    """Words that choose a style."""
    backgrounds: tuple[str, ...]
    """Words that choose a background, for example `light blue`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """A remark about a request that does not stop it."""

    code: Literal["UNKNOWN_WORDS", "PROMPT_TRUNCATED"]
    message: str
    """One sentence for people."""
    field: str
    """Path of the request field that it is about."""


class LoadedModel(DeviceModel, Protocol):
    """A model that is ready to draw.

    Attributes, `latent_shape` and `prompt_notices` may be used from any thread; every other method
    from the device thread alone. Tensors live on `device`; latents, timesteps and context are
    float32 whatever precision the graphs compute in. Results are fresh: no later call writes to
    them.
    """

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise schedule that the model was trained with."""
        ...

    @property
    def limits(self) -> ImageLimits:
        """Limits of image requests."""
        ...

    @property
    def defaults(self) -> ImageDefaults:
        """Values used where a request leaves them out."""
        ...

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the samplers that it accepts."""
        ...

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The words that it was trained on; None for an open vocabulary."""
        ...

    @property
    def max_batch_rows(self) -> int:
        """Rows beyond which a larger call of `denoise` no longer pays on this device."""
        ...

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape (C, h, w) of the latent of a picture of `width` × `height` pixels."""
        ...

    def prompt_notices(self, prompt: str, *, field: str = "prompt") -> list[Notice]:
        """Remarks about words that the model never saw or that its text encoder cuts off."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts into (N, L, D) float32; recent ones come from a cache.

        A prompt's encoding does not depend on the others in the call.
        """
        ...

    def denoise(self, latents_BChw: Tensor, timesteps_B: Tensor, context_BLD: Tensor) -> Tensor:
        """One call of the denoiser, each row at its own timestep: raw output (B, C, h, w) float32.

        What the output means (noise, velocity, sample) is `schedule.prediction_type`. Guidance is
        the caller's: it packs conditional and unconditional rows.
        """
        ...

    def decode(self, latents_BChw: Tensor) -> UInt8Array:
        """Decode finished latents into pictures (B, H, W, 3)."""
        ...

    def preview(self, latents_BChw: Tensor) -> UInt8Array:
        """Rough pictures (B, h × 4, w × 4, 3) of estimated clean latents, without the decoder."""
        ...
