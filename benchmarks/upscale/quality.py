"""Photographs reduced to a quarter and restored: PSNR and SSIM beside Lanczos and ncnn, a picture.

    python -m benchmarks.upscale.quality --picture docs/upscaling.webp

Each photograph is cropped, reduced by four with an antialiased filter and enlarged by four again.
Networks that draw texture lie below Lanczos in PSNR, which rewards blur: the eye decides, and that
the figures of Limner's runtime and of ncnn agree. Models that are not installed are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage import metrics

from benchmarks.report import Cell, json_line, table
from benchmarks.upscale.contenders import published_files
from benchmarks.upscale.workload import UInt8Array
from services.upscale.loading import load_upscaler
from services.upscale.model import DeviceOptions
from services.upscale.weights.library import Entry, find_entries
from services.upscale.weights.parity import PHOTOS, photo_crop, run_ncnn

SCALE = 4
MODELS = ("realesr-animevideov3", "realesrgan-x4plus")
_LABEL_HEIGHT = 22
_CELL = 256

Restored = dict[str, UInt8Array]
"""A photograph by what restored it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Restore, compare, print, and draw the picture."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    found = find_entries([options.folder])
    entries = [found[name] for name in MODELS if found[name].missing() is None]
    originals = {name: photo_crop(name, options.side) for name in PHOTOS}
    small = {name: _reduced(original) for name, original in originals.items()}
    restored: dict[str, Restored] = {name: {"Lanczos": _lanczos(small[name])} for name in PHOTOS}
    for entry in entries:
        for label, pictures in _by_model(entry, small, options).items():
            for name, picture in pictures.items():
                restored[name][label] = picture
    figures = {
        name: {label: _figures(originals[name], each) for label, each in of.items()}
        for name, of in restored.items()
    }
    print(_table(figures))
    if options.picture:
        _sheet(originals, small, restored).save(options.picture, quality=90)
    print(json_line("upscale-quality", figures))


def _by_model(
    entry: Entry, small: Mapping[str, UInt8Array], options: argparse.Namespace
) -> dict[str, Restored]:
    """What Limner's runtime and ncnn make of the small pictures."""
    device = DeviceOptions(cache_dir=options.cache_dir, thread_count=options.threads)
    model = load_upscaler(entry, device)
    ours, reference = {}, {}
    files = published_files(entry)
    for name, picture in small.items():
        planes = picture.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        ours[name] = model.enlarge(torch.from_numpy(planes)[None], None)[0].numpy()
        reference[name] = _pixels(run_ncnn(*files, planes, thread_count=options.threads))
    return {entry.name: ours, f"{entry.name} (ncnn)": reference}


def _reduced(picture: UInt8Array) -> UInt8Array:
    height, width = picture.shape[:2]
    size = (width // SCALE, height // SCALE)
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _lanczos(picture: UInt8Array) -> UInt8Array:
    height, width = picture.shape[:2]
    size = (width * SCALE, height * SCALE)
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _pixels(planes: np.ndarray) -> UInt8Array:
    rounded: UInt8Array = (planes.transpose(1, 2, 0) * 255).round().clip(0, 255).astype(np.uint8)
    return rounded


def _figures(original: UInt8Array, restored: UInt8Array) -> dict[str, float]:
    # Without types of its own.
    psnr = metrics.peak_signal_noise_ratio(original, restored)  # type: ignore[no-untyped-call]
    ssim = metrics.structural_similarity(  # type: ignore[no-untyped-call]
        original, restored, channel_axis=2
    )
    return {"psnr_db": float(psnr), "ssim": float(ssim)}


def _table(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    labels = list(next(iter(figures.values())))
    rows: list[list[Cell]] = [
        [
            label,
            *(f"{of[label]['psnr_db']:.2f} / {of[label]['ssim']:.3f}" for of in figures.values()),
        ]
        for label in labels
    ]
    return table(["PSNR dB / SSIM", *figures], rows)


def _sheet(
    originals: Mapping[str, UInt8Array],
    small: Mapping[str, UInt8Array],
    restored: Mapping[str, Restored],
) -> Image.Image:
    """Photographs down; input, Lanczos, models and original across."""
    first = next(iter(restored.values()))
    labels = ["input", *(each for each in first if "ncnn" not in each), "original"]
    font = ImageFont.load_default(13)
    sheet = Image.new("RGB", (_CELL * len(labels), _LABEL_HEIGHT + _CELL * len(originals)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(labels):
        draw.text((column * _CELL + 6, 3), label, fill="black", font=font)
    for row, name in enumerate(originals):
        shown = {
            "input": small[name].repeat(SCALE, axis=0).repeat(SCALE, axis=1),
            "original": originals[name],
            **restored[name],
        }
        for column, label in enumerate(labels):
            cell = Image.fromarray(_middle(shown[label]))
            sheet.paste(cell, (column * _CELL, _LABEL_HEIGHT + row * _CELL))
    return sheet


def _middle(picture: UInt8Array) -> UInt8Array:
    top, left = ((side - _CELL) // 2 for side in picture.shape[:2])
    return picture[top : top + _CELL, left : left + _CELL]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.upscale.quality", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("models/upscalers"))
    parser.add_argument("--side", type=int, default=296, help="Side of the crops, a multiple of 4.")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache/limner"))
    return parser


if __name__ == "__main__":
    main()
