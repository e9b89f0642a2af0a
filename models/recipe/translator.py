"""Stage 2: what a thing looks like in a style that it was not shown in, told from its other styles.

Called by the command line. Some drawings are held out; text encoder and denoiser cannot tell from a
thousand things how a style turns one thing into another, for they know no pixels. A small network
that sees the pixels can: it learns to paint each drawing from the same thing's drawings in the
other styles, and then paints those that are held out, which it has never seen. What it painted,
`completions`, takes their place in all that follows. Legend: B batch, S styles, H and W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.recipe.autoencoder import picture_loss
from models.recipe.captions import STYLES
from models.recipe.dataset import POSES, Dataset
from models.recipe.heldout import Pair, held_out_pairs
from models.recipe.loop import LossFunction
from models.recipe.parallel import Worker
from models.recipe.workdir import WorkDir

BATCH = 16
STYLE_SHARES = (0.25, 0.25, 0.5)
"""Of the drawings to paint, as in `STYLES`: lines are the hardest to tell."""
LINE_CONTRAST = 4.0
"""Lines are black or nothing: what is half sure becomes one or the other, with a soft rim."""
_ALIKE = {0: 1, 1: 0}
"""The style whose drawing is what has to be changed; lines begin with an empty page."""
_HERE = 0.5
_WIDTHS = (40, 80, 128, 160)

Views = Callable[[int, int], np.ndarray]
"""The view of a drawing, by its place and pose: premultiplied uint8 [4, 128, 128]."""


class Translator(nn.Module):
    """A U-Net on squares of 2×2 pixels; what it paints is a change of the style most alike."""

    def __init__(self) -> None:
        """Untrained."""
        super().__init__()
        first, second, third, fourth = _WIDTHS
        self.down = nn.ModuleList(
            (
                _level(4 * 4 * len(STYLES), first),
                _level(first, second, stride=2),
                _level(second, third, stride=2),
                _level(third, fourth, stride=2),
            )
        )
        self.up = nn.ModuleList(
            (
                _level(fourth + third, third),
                _level(third + second, second),
                _level(second + first, first),
            )
        )
        self.out = nn.Conv2d(first, 4 * 4, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, others_BS4HW: Tensor, styles_B: Tensor) -> Tensor:
        """Paint `styles_B`, places in `STYLES`, from the others: float [B, 4, H, W].

        Views are premultiplied RGBA, 0 to 1; those of the styles to paint are not looked at.
        """
        rows = torch.arange(len(styles_B), device=styles_B.device)
        shown = others_BS4HW.clone()
        shown[rows, styles_B] = _HERE
        x = F.pixel_unshuffle(shown.flatten(1, 2), 2).contiguous(memory_format=torch.channels_last)
        skipped = []
        for level in self.down:
            x = level(x)
            skipped.append(x)
        for level, skip in zip(self.up, reversed(skipped[:-1]), strict=True):
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1))
        change: Tensor = F.pixel_shuffle(self.out(x), 2).float()
        alike_B = torch.tensor([_ALIKE.get(s, s) for s in styles_B.tolist()], device=rows.device)
        start = others_BS4HW[rows, alike_B] * (alike_B != styles_B)[:, None, None, None]
        return start + change


def _level(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*_layer(inputs, outputs, stride), *_layer(outputs, outputs, 1))


def _layer(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


def translator_loss(
    model: Translator, dataset: Dataset, batch: int, device: torch.device
) -> LossFunction:
    """How far painted drawings are from real ones, of things that are shown in all styles."""
    shown = dataset.places.keys() - held_out_pairs(dataset.concepts)
    concepts = [
        concept
        for concept in range(len(dataset.concepts))
        if all((concept, style) in shown for style in STYLES)
    ]

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        random = Random(int(torch.randint(2**31, (1,), generator=generator)))
        styles_B = torch.tensor(random.choices(range(len(STYLES)), STYLE_SHARES, k=batch))
        views = torch.stack(
            [
                _views(dataset, random.choice(concepts), random.randrange(len(POSES)))
                for _ in range(batch)
            ]
        )
        mirrored = torch.rand(batch, generator=generator) < 0.5
        views = torch.where(mirrored[:, None, None, None, None], views.flip(-1), views)
        views, styles_B = views.to(device), styles_B.to(device)
        painted = model(views, styles_B)
        truth = views[torch.arange(batch, device=device), styles_B]
        return picture_loss(2.0 * painted, 2.0 * truth), {}

    return loss


def _views(dataset: Dataset, concept: int, pose: int) -> Tensor:
    """One pose of a thing in all styles, 0 to 1, empty where there is none: [S, 4, H, W]."""
    stack = np.zeros((len(STYLES), *dataset.views.shape[2:]), np.uint8)
    for row, style in enumerate(STYLES):
        if (concept, style) in dataset.places:
            stack[row] = dataset.views[dataset.places[concept, style], pose]
    return torch.from_numpy(stack).float() / 255.0


def _held_out(dataset: Dataset) -> list[Pair]:
    return sorted(held_out_pairs(dataset.concepts) & dataset.places.keys())


@torch.no_grad()
def complete(model: Translator, dataset: Dataset, work: WorkDir, worker: Worker) -> None:
    """Paint what is held out in every pose, and write it to `work.completions`.

    Each is the mean of two: from the views and, turned back, from the mirrored views.
    """
    pairs = _held_out(dataset)
    painted = np.zeros((len(pairs), len(POSES), *dataset.views.shape[2:]), np.uint8)
    for row, (concept, style) in enumerate(pairs):
        views = torch.stack([_views(dataset, concept, pose) for pose in range(len(POSES))])
        place = STYLES.index(style)
        views[:, place] = 0.0
        views = torch.cat([views, views.flip(-1)]).to(worker.device)
        with worker.autocast():
            found, mirrored = model(views, torch.tensor([place] * len(views))).cpu().chunk(2)
        painted[row] = as_view((found + mirrored.flip(-1)) / 2.0, style)
    partial = work.completions.with_suffix(".partial.npz")
    drawings = np.array([dataset.places[pair] for pair in pairs])
    np.savez_compressed(partial, drawings=drawings, views=painted)
    os.replace(partial, work.completions)


def as_view(painted_B4HW: Tensor, style: str) -> np.ndarray:
    """What the network painted as premultiplied uint8: no colour exceeds its opacity."""
    colours, opacity = painted_B4HW[:, :3], painted_B4HW[:, 3:].clamp(0.0, 1.0)
    if style == "line":
        opacity = ((opacity - 0.5) * LINE_CONTRAST + 0.5).clamp(0.0, 1.0)
        colours = torch.zeros_like(colours)
    view = torch.cat([colours.clamp(min=0.0).minimum(opacity), opacity], dim=1)
    return np.asarray((255.0 * view).round().byte())


def shown_views(dataset: Dataset, work: WorkDir) -> Views:
    """Views that may be learnt from: completions stand for what is held out.

    FileNotFoundError before `complete` has run, ValueError if that was for other drawings.
    """
    with np.load(work.completions) as file:
        painted = dict(zip(file["drawings"].tolist(), file["views"], strict=True))
    if painted.keys() != {dataset.places[pair] for pair in _held_out(dataset)}:
        raise ValueError(f"{work.completions} was painted for other drawings: remove it")

    def view(place: int, pose: int) -> np.ndarray:
        found = painted[place][pose] if place in painted else dataset.views[place, pose]
        return np.array(found)

    return view
