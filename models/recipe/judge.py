"""The judge: a small classifier of finished pictures that sees inner detail.

Called by the command line to train, and by `evaluate` to rate. It learns from the originals alone
(all styles, any background, some painted in another colour, slight blur and noise), never from the
model's output. Spoiled originals (`spoilers`) have a class of their own, `none`, so that colour and
outline are not enough. While it learns, every drawing is a class: what a thing looks like in two
styles need not be one. Legend: B batch, F features, H and W pixels, K concepts, P drawings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.recipe.captions import BACKGROUNDS, free_colours
from models.recipe.colours import natural_colour, paint
from models.recipe.dataset import VIEW_COUNT, Dataset, composite, ink, load_dataset
from models.recipe.export import load_autoencoder
from models.recipe.loop import LossFunction, train
from models.recipe.parallel import Worker, pick_dtype
from models.recipe.plan import Plan
from models.recipe.spoilers import SPOILERS, blur
from models.recipe.state import load_ema
from models.recipe.workdir import WorkDir

TRAINING_MINUTES = 45.0
BATCH = 128
PAINTED_SHARE = 0.15
SPOILED_SHARE = 0.35
WHITE_SHARE = 0.6
TRAINED_VIEW_COUNT = VIEW_COUNT - 1
"""The last view of a drawing is for testing."""
MAX_ROLL_PX = 3
HARMLESS_DB = 26.0
"""A spoiled picture this close to the original is still the thing, and is left out.

A disc without its gradient is still a disc: 27 dB from it, where most silhouettes are at 21.
"""


class Judge(nn.Module):
    """Patches of 4×4 pixels, convolutions down to 8×8, a class a drawing and `none`."""

    def __init__(self, concepts_P: Sequence[int], concept_count: int) -> None:
        """Untrained; `concepts_P` says which concept each class of a drawing is."""
        super().__init__()
        self._concept_count = concept_count
        self._concepts_P = torch.tensor(concepts_P)
        self.conv_in = nn.Conv2d(3, 48, 4, stride=4, bias=False)
        self.features = nn.Sequential(
            _block(48, 64),
            _block(64, 96, stride=2),
            _block(96, 96),
            _block(96, 128, stride=2),
            _block(128, 256),
        )
        self.conv_out = nn.Linear(2 * 256, len(concepts_P) + 1)

    def forward(self, pictures_B3HW: Tensor) -> Tensor:
        """Logits [B, K + 1] of pictures in [-1, 1]; the last is `none`."""
        logits_BP = self.drawing_logits(pictures_B3HW).float()
        shares_BP = logits_BP.softmax(1)
        concepts_P = self._concepts_P.to(logits_BP.device)
        shares = shares_BP.new_zeros(len(logits_BP), self._concept_count)
        shares = shares.index_add(1, concepts_P, shares_BP[:, :-1])
        return torch.cat([shares, shares_BP[:, -1:]], dim=1).clamp(min=1e-12).log()

    def drawing_logits(self, pictures_B3HW: Tensor) -> Tensor:
        """Logits [B, P + 1] of pictures in [-1, 1], one for each drawing, the last for `none`."""
        logits: Tensor = self.conv_out(self.pooled(pictures_B3HW))
        return logits

    def pooled(self, pictures_B3HW: Tensor) -> Tensor:
        """Features [B, F] of pictures in [-1, 1]."""
        features = self.features(self.conv_in(pictures_B3HW))
        return torch.cat([features.mean((2, 3)), features.amax((2, 3))], dim=1)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


def train_judge(work: WorkDir, device: torch.device, minutes: float = TRAINING_MINUTES) -> None:
    """Train in one process; resumes."""
    worker = Worker(rank=0, world_size=1, device=device, dtype=pick_dtype(device))
    dataset = load_dataset(work.root)
    torch.manual_seed(0)
    model = build_judge(dataset).to(device)
    plan = Plan(
        learning_rate=3e-3,
        budget_s=60.0 * minutes,
        ema_decay=0.99,
        weight_decay=0.02,
        muon=True,
    )
    work.judge.parent.mkdir(parents=True, exist_ok=True)
    train({"judge": model}, judge_loss(model, dataset, device), plan, work.judge, worker)


def build_judge(dataset: Dataset) -> Judge:
    """An untrained judge of the dataset's drawings."""
    concepts_P = [drawing.concept_index for drawing in dataset.drawings]
    return Judge(concepts_P, len(dataset.concepts))


def load_judge(work: WorkDir, dataset: Dataset) -> Judge:
    """The trained judge; raises FileNotFoundError before `train_judge` has run."""
    model = build_judge(dataset)
    load_ema(work.judge, {"judge": model})
    return model.eval()


def judge_loss(model: Judge, dataset: Dataset, device: torch.device) -> LossFunction:
    """Cross-entropy on augmented originals, about a third of them spoiled."""
    draw = Examples(dataset)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        random = Random(int(torch.randint(2**31, (1,), generator=generator)))
        examples = [draw.one(random) for _ in range(BATCH)]
        pictures = torch.stack([picture for picture, _ in examples]).to(device)
        labels = torch.tensor([label for _, label in examples]).to(device)
        logits = model.drawing_logits(pictures).float()
        right = (logits.argmax(1) == labels)[labels >= 0].float().mean()
        return F.cross_entropy(logits, labels, label_smoothing=0.05), {"accuracy": right}

    return loss


class Examples:
    """Pictures to learn from, with their classes."""

    def __init__(self, dataset: Dataset) -> None:
        """Note once which drawings may be painted in another colour."""
        self._dataset = dataset
        self._natural: dict[int, str | None] = {}
        self._free_colours = free_colours(dataset.concepts)

    def one(self, random: Random) -> tuple[Tensor, int]:
        """A picture [3, 128, 128] and its drawing, or the number of drawings for `none`.

        -100, which the loss skips, if it is unclear.
        """
        dataset = self._dataset
        index = random.randrange(len(dataset.drawings))
        drawing = dataset.drawings[index]
        view = random.randrange(min(TRAINED_VIEW_COUNT, dataset.views.shape[1]))
        white = random.random() < WHITE_SHARE
        background = "white" if white else random.choice(tuple(BACKGROUNDS))
        rgba = torch.from_numpy(np.array(dataset.views[index, view])).float()
        down, right = (random.randint(-MAX_ROLL_PX, MAX_ROLL_PX) for _ in range(2))
        rgba = rgba.roll((down, right), (1, 2))
        rgba = self._painted(ink(rgba, drawing.style, background), index, random)
        picture = _composite(rgba, BACKGROUNDS[background])
        label = dataset.places[dataset.labels[index], drawing.style]
        if random.random() < SPOILED_SHARE:
            original = picture
            spoiled = random.choice(SPOILERS)(rgba, random)
            picture = _composite(spoiled, BACKGROUNDS[background])
            harmless = psnr_db(picture, original) > HARMLESS_DB
            label = -100 if harmless else len(dataset.drawings)
        return disturb(picture, random), label

    def _painted(self, rgba: Tensor, index: int, random: Random) -> Tensor:
        drawing = self._dataset.drawings[index]
        concept = self._dataset.concepts[drawing.concept_index]
        if drawing.style == "line" or not concept.colourless_names:
            return rgba
        if random.random() >= PAINTED_SHARE:
            return rgba
        if index not in self._natural:
            self._natural[index] = natural_colour(rgba)
        free = self._free_colours[drawing.concept_index]
        if self._natural[index] is None or not free:
            return rgba
        return paint(rgba, random.choice(free))


def disturb(picture_3HW: Tensor, random: Random) -> Tensor:
    """What does not change what a picture shows: slight blur, noise, light and tint."""
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    picture = blur(picture_3HW, max(0.0, random.uniform(-0.4, 0.9)))
    gain = 1.0 + 0.06 * torch.randn(3, 1, 1, generator=generator)
    noise = random.uniform(0.0, 0.05) * torch.randn(picture.shape, generator=generator)
    return (picture * gain + noise).clamp(-1.0, 1.0)


def psnr_db(picture: Tensor, original: Tensor) -> float:
    """Peak signal-to-noise ratio of pictures in [-1, 1], in decibels."""
    error = float((picture - original).square().mean())
    return -10.0 * float(np.log10(max(error, 1e-10) / 4.0))


def _composite(rgba_4HW: Tensor, colour: tuple[int, int, int]) -> Tensor:
    return composite(rgba_4HW[None], torch.tensor([colour]))[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rating:
    """Shares, 0 to 1, of pictures whose right concept is first, among five, and called none.

    `top1_of_concepts` leaves `none` out: what it would be called if it had to be something.
    """

    top1: float
    top1_of_concepts: float
    top5: float
    none: float


@torch.no_grad()
def logits_of(model: Judge, pictures_B3HW: Tensor) -> Tensor:
    """Logits [B, K + 1], computed in small batches."""
    return torch.cat([model(batch) for batch in torch.split(pictures_B3HW, 64)])


@torch.no_grad()
def styles_of(model: Judge, dataset: Dataset, pictures_B3HW: Tensor) -> list[str]:
    """Style of the drawing that each picture is most like, `none` left out."""
    batches = [model.drawing_logits(batch) for batch in torch.split(pictures_B3HW, 64)]
    return [dataset.drawings[i].style for i in torch.cat(batches)[:, :-1].argmax(1).tolist()]


def rate(model: Judge, pictures_B3HW: Tensor, concepts_B: Tensor) -> Rating:
    """How often the judge names the right concept; `none` first counts as wrong."""
    logits = logits_of(model, pictures_B3HW)
    best = logits.topk(5, dim=1).indices
    return Rating(
        top1=_share(best[:, 0] == concepts_B),
        top1_of_concepts=_share(logits[:, :-1].argmax(1) == concepts_B),
        top5=_share((best == concepts_B[:, None]).any(1)),
        none=_share(best[:, 0] == logits.shape[1] - 1),
    )


def _share(flags: Tensor) -> float:
    return round(float(flags.float().mean()), 4)


@torch.no_grad()
def features_of(model: Judge, pictures_B3HW: Tensor) -> Tensor:
    """Features [B, F], computed in small batches."""
    return torch.cat([model.pooled(batch) for batch in torch.split(pictures_B3HW, 64)])


def examine(work: WorkDir, drawings: Sequence[int]) -> dict[str, Rating]:
    """What the judge is worth: its rating of pictures whose quality is known.

    Views that it has not seen of `drawings`, plain and disturbed; the same blurred; the same
    through the autoencoder.
    """
    dataset = load_dataset(work.root)
    model = load_judge(work, dataset)
    concepts = torch.tensor([dataset.labels[index] for index in drawings])
    plain = unseen_views(dataset, drawings)
    random = Random(99)
    versions = {
        "held-out views": plain,
        "held-out views, disturbed": torch.stack([disturb(p, random) for p in plain]),
        "through the autoencoder": reconstruct(work, plain),
    }
    for sigma in (1.0, 2.0, 3.0, 4.0):
        blurred = partial(blur, sigma=sigma)
        versions[f"blurred, sigma {sigma:.0f} px"] = torch.stack([blurred(p) for p in plain])
    return {name: rate(model, pictures, concepts) for name, pictures in versions.items()}


def unseen_views(dataset: Dataset, drawings: Sequence[int]) -> Tensor:
    """Originals on white in a pose that the judge has not learnt: [B, 3, 128, 128]."""
    views = dataset.views[list(drawings), -1]
    return composite(torch.from_numpy(views).float(), torch.full((len(views), 3), 255))


@torch.no_grad()
def reconstruct(work: WorkDir, pictures_B3HW: Tensor) -> Tensor:
    """The same pictures through the autoencoder."""
    model = load_autoencoder(work)
    batches = [model.decoder(model.encoder(batch)) for batch in torch.split(pictures_B3HW, 16)]
    return torch.cat(batches).clamp(-1.0, 1.0)
