"""Converted weights beside the ncnn runtime that they were published for.

Called by `limner weights convert` and by tests. Needs the `ncnn` wheel and scikit-image, which has
photographs; both come with the extra `dev`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.upscale.architectures.recognition import build, recognise

Float32Array = npt.NDArray[np.float32]

PHOTOS = ("astronaut", "chelsea", "coffee")
_CROP = 96


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How far a photograph's result is from the reference, on a scale of 0 to 1."""

    photo: str
    mean_difference: float
    max_difference: float


def photo_crop(name: str, side: int = _CROP) -> npt.NDArray[np.uint8]:
    """The middle (side, side, 3) of one of `PHOTOS`. Raises ImportError without scikit-image."""
    from skimage import data

    photo: npt.NDArray[np.uint8] = getattr(data, name)()
    top, left = ((length - side) // 2 for length in photo.shape[:2])
    return np.ascontiguousarray(photo[top : top + side, left : left + side])


def compare(weights: Mapping[str, Tensor], param: Path, binary: Path) -> list[Parity]:
    """Run both on a crop of each photograph in float32; ImportError without the packages."""
    network = build(recognise(weights), weights)
    results = []
    for name in PHOTOS:
        picture = photo_crop(name).astype(np.float32).transpose(2, 0, 1) / 255.0
        with torch.inference_mode():
            ours = network(torch.from_numpy(picture)[None])[0].numpy()
        difference = np.abs(ours - run_ncnn(param, binary, picture))
        results.append(
            Parity(
                photo=name,
                mean_difference=float(difference.mean()),
                max_difference=float(difference.max()),
            )
        )
    return results


def run_ncnn(
    param: Path, binary: Path, picture_CHW: Float32Array, *, thread_count: int = 1
) -> Float32Array:
    """The reference's result for a picture in 0 to 1, in float32 arithmetic."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = thread_count
    net.opt.use_vulkan_compute = False
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(net.opt, option, False)
    net.load_param(str(param))
    net.load_model(str(binary))
    extractor = net.create_extractor()
    # Mat refers to the array's memory without holding it, and the output to the net's.
    contiguous = np.ascontiguousarray(picture_CHW)
    extractor.input("data", ncnn.Mat(contiguous).clone())
    _, output = extractor.extract("output")
    return np.array(output).copy()
