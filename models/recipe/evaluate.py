"""Stage 6: draw every concept in every style, rate the pictures, make the sheets.

Called by the command line after `export` and `judge`. Everything is drawn by the stock pipeline
from the shipped folder at its recommended settings; seeds are fixed, nothing is picked. Writes
`evaluation.json` and `sheet.webp` into that folder and `contact-sheet.png` into the documentation.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.recipe import judge, sheets
from models.recipe.captions import BACKGROUNDS, STYLES, Concept, article_for, load_concepts
from models.recipe.dataset import load_dataset
from models.recipe.drawing import Order, Painter
from models.recipe.export import weights_digest
from models.recipe.workdir import WorkDir

logger = logging.getLogger(__name__)

SEEDS = (0, 1)
PRECISION = "bfloat16"
"""As the diffusion service computes on a CPU that can."""
BACKGROUND_THINGS = ("a cat", "a rocket", "a house", "a guitar")
CORNER_PX = 12
README_SHEET_MAX_BYTES = 400_000
CARD_SHEET_MAX_BYTES = 500_000
README_PROMPTS = (
    *("a red apple", "a dog face", "a slice of pizza", "a rocket"),
    *("a house", "a guitar", "a smiling face", "a cat on a blue background"),
    *("a panda", "a fox", "an owl", "a unicorn"),
    *("an octopus", "a butterfly", "a penguin", "a turtle"),
    *("a strawberry on a yellow background", "a robot on a light blue background"),
    *("a rose on a pink background", "a castle on a purple background"),
    *("a hamburger on an orange background", "a ghost on a black background"),
    *("a sailboat on a green background", "a cactus"),
    *("a flat rocket", "a camera, flat style", "a cupcake, flat style", "a bicycle, flat style"),
    *("a tiger face, flat design", "a mushroom, flat style"),
    *("a flat house on a light blue background", "a snowman, flat style"),
)
"""Chosen before anything was drawn; always at seed 0."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Everything drawn for the evaluation: uint8 [seed, concept, 128, 128, 3] for each style."""

    pictures: dict[str, np.ndarray]

    def flat(self, style: str) -> np.ndarray:
        """All seeds of a style one after the other."""
        return self.pictures[style].reshape(-1, *self.pictures[style].shape[2:])


def evaluate(work: WorkDir, folder: Path, docs: Path) -> dict[str, object]:
    """Measure the model in `folder`; returns what it wrote to `evaluation.json`."""
    painter = Painter(folder, precision=PRECISION)
    return measure(work, painter, draw_gallery(painter, load_concepts()), folder, docs)


def measure(
    work: WorkDir, painter: Painter, gallery: Gallery, folder: Path, docs: Path
) -> dict[str, object]:
    """Rate a gallery that `painter` drew, and write reports and sheets."""
    concepts = load_concepts()
    report: dict[str, object] = {
        "weights_sha256": weights_digest(folder),
        "settings": {**asdict(painter.settings), "precision": painter.precision},
        "seeds": list(SEEDS),
        "concept_count": len(concepts),
        "judge": {name: asdict(rating) for name, rating in judge.examine(work).items()},
        "styles": rate_styles(work, gallery, concepts),
        "diversity": diversity(gallery.pictures["3d"], concepts),
        "repeatability": repeatability(painter),
        "backgrounds": background_accuracy(painter),
    }
    make_sheets(work, painter, gallery, folder, docs)
    (folder / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
    logger.info("%s", summary(report))
    return report


def prompt_for(concept: Concept, style: str) -> str:
    """What a user types: 3d is what they get without asking."""
    return concept.phrase if style == "3d" else f"{concept.phrase}, {style} style"


def draw_gallery(painter: Painter, concepts: Sequence[Concept]) -> Gallery:
    """Every concept in every style at every seed."""
    pictures = {}
    for style in STYLES:
        orders = [
            Order(prompt=prompt_for(concept, style), seed=seed)
            for seed in SEEDS
            for concept in concepts
        ]
        drawn = painter.draw(orders)
        pictures[style] = drawn.reshape(len(SEEDS), len(concepts), *drawn.shape[1:])
        logger.info("drew %d pictures, %s", len(orders), style)
    return Gallery(pictures=pictures)


def as_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in [-1, 1], as the judge wants them."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def rate_styles(
    work: WorkDir, gallery: Gallery, concepts: Sequence[Concept]
) -> dict[str, dict[str, object]]:
    """The judge's verdict for each style, with every miss by name."""
    model = judge.load_judge(work, len(concepts))
    names = [*(concept.label for concept in concepts), "none"]
    truth = torch.arange(len(concepts)).repeat(len(SEEDS))
    report: dict[str, dict[str, object]] = {}
    for style in STYLES:
        pictures = as_tensor(gallery.flat(style))
        best = judge.logits_of(model, pictures).argmax(1)
        misses = [
            {"seed": SEEDS[i // len(concepts)], "drawn": names[right], "judged": names[guess]}
            for i, (right, guess) in enumerate(zip(truth.tolist(), best.tolist(), strict=True))
            if right != guess
        ]
        rating = judge.rate(model, pictures, truth)
        report[style] = {**asdict(rating), "misses": misses}
    return report


def diversity(pictures: np.ndarray, concepts: Sequence[Concept]) -> dict[str, object]:
    """How much two seeds differ: root mean square of 8-bit pixels, mean and least over concepts."""
    first, second = pictures[0].astype(np.float64), pictures[1].astype(np.float64)
    distances = np.sqrt(np.square(first - second).mean(axis=(1, 2, 3)))
    least = int(distances.argmin())
    return {
        "rms_mean": round(float(distances.mean()), 2),
        "rms_least": round(float(distances[least]), 2),
        "least_diverse": concepts[least].label,
    }


def repeatability(painter: Painter) -> dict[str, object]:
    """Whether the same prompt and seed give the same picture again, and in a batch."""
    order = Order(prompt="a red apple", seed=3)
    others = [Order(prompt=f"a {name}", seed=i) for i, name in enumerate(("dog", "cat", "house"))]
    alone, again = painter.draw([order]), painter.draw([order])
    beside = painter.draw([*others, order])[-1:]
    difference = np.abs(alone.astype(np.int16) - beside.astype(np.int16))
    return {
        "same_seed_identical": bool((alone == again).all()),
        "alone_or_in_a_batch_max_difference": int(difference.max()),
    }


def background_accuracy(painter: Painter) -> dict[str, object]:
    """Corners of pictures that were asked for on a colour, against that colour."""
    names = list(BACKGROUNDS)
    asked = [name for name in names for _ in BACKGROUND_THINGS]
    orders = [
        Order(prompt=f"{thing} on {article_for(name)} {name} background", seed=0)
        for name in names
        for thing in BACKGROUND_THINGS
    ]
    seen = corner_colours(painter.draw(orders))
    palette = np.array(list(BACKGROUNDS.values()), dtype=np.float64)
    nearest = np.linalg.norm(seen[:, None] - palette, axis=2).argmin(1)
    errors = np.abs(seen - palette[[names.index(name) for name in asked]]).mean(1)
    wrong = [
        order.prompt
        for order, name, index in zip(orders, asked, nearest, strict=True)
        if names[index] != name
    ]
    return {
        "prompt_count": len(orders),
        "right_share": round(1.0 - len(wrong) / len(orders), 4),
        "mean_error_8bit": round(float(errors.mean()), 2),
        "wrong": wrong,
    }


def corner_colours(pictures: np.ndarray) -> np.ndarray:
    """Median colour of the four corners: uint8 [N, H, W, 3] to float64 [N, 3]."""
    near, far = slice(None, CORNER_PX), slice(-CORNER_PX, None)
    corners = [pictures[:, y, x] for y in (near, far) for x in (near, far)]
    pixels = np.stack(corners, axis=1).reshape(len(pictures), -1, 3)
    colours: np.ndarray = np.median(pixels, axis=1)
    return colours


def make_sheets(
    work: WorkDir, painter: Painter, gallery: Gallery, folder: Path, docs: Path
) -> None:
    """The README's sheet, the card's, and pages with the truth beside what was drawn."""
    chosen = painter.draw([Order(prompt=prompt, seed=0) for prompt in README_PROMPTS])
    page = sheets.contact_sheet(list(chosen), 8, captions=README_PROMPTS)
    sheets.save_png(page, docs / "contact-sheet.png", README_SHEET_MAX_BYTES)
    pairs = np.stack([gallery.pictures[style][0] for style in STYLES], axis=1)
    everything = sheets.contact_sheet(list(pairs.reshape(-1, *pairs.shape[2:])), 18, side=96)
    sheets.save_webp(everything, folder / "sheet.webp", CARD_SHEET_MAX_BYTES)
    _truth_pages(work, gallery)


def _truth_pages(work: WorkDir, gallery: Gallery, concepts_per_page: int = 42) -> None:
    """Pages under the work folder: for each style the original, then every seed."""
    dataset = load_dataset(work.root)
    tiles: list[np.ndarray] = []
    captions: list[str] = []
    for index, drawing in enumerate(dataset.drawings):
        original = dataset.composite(index, 0, BACKGROUNDS["white"])
        tiles.append(((original + 1.0) * 127.5).byte().permute(1, 2, 0).numpy())
        tiles += list(gallery.pictures[drawing.style][:, drawing.concept_index])
        label = dataset.concepts[drawing.concept_index].label
        captions += [f"{label} ({drawing.style})", *(f"seed {seed}" for seed in SEEDS)]
    per_page = concepts_per_page * len(STYLES) * (1 + len(SEEDS))
    for number, start in enumerate(range(0, len(tiles), per_page), start=1):
        stop = start + per_page
        page = sheets.contact_sheet(tiles[start:stop], 12, captions=captions[start:stop])
        path = work.sheets / f"truth-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        page.save(path)


def summary(report: dict[str, object]) -> str:
    """The report as a short table for people."""
    columns = ("top1", "top1_of_concepts", "top5", "none")
    lines = [f"{'':28}{'top-1':>8}{'named':>8}{'top-5':>8}{'none':>8}"]
    for part in ("judge", "styles"):
        ratings = report[part]
        assert isinstance(ratings, dict)
        for name, values in ratings.items():
            shares = "".join(f"{values[key]:8.1%}" for key in columns)
            lines.append(f"{name:28}{shares}")
    for part in ("diversity", "repeatability", "backgrounds"):
        lines.append(f"{part}: {report[part]}")
    return "\n".join(lines)
