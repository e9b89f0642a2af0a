"""From views to training examples: pictures, their latents, and captions that tell the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from models.recipe.autoencoder import build_autoencoder
from models.recipe.captions import BACKGROUNDS, LAYOUTS, PLAIN, Scene, load_concepts
from models.recipe.dataset import POSES, Dataset, composite, ink
from models.recipe.draws import KIND_SHARES, POSED_SHARE, Draws
from models.recipe.heldout import COLOUR_CONCEPTS, FIRST_EDITION_COUNT, SHARE, held_out_pairs
from models.recipe.latents import (
    CENTRED,
    ON_BACKGROUNDS,
    POSED,
    POSED_ON_BACKGROUNDS,
    EncodedPictures,
    draw_picture,
    draw_scene,
    encode_chunk,
    kind_of,
    latent_scale,
    load_latents,
    paintable_colour,
)
from models.recipe.layouts import covered, lay_out
from models.recipe.surroundings import Surroundings
from models.recipe.tokenizer import load_tokenizer, tokenize, train_tokenizer
from models.recipe.translator import shown_views
from models.recipe.workdir import WorkDir
from tests.models.tiny import CONCEPTS, DRAWINGS, WORKER, write_completions, write_views


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[WorkDir, Dataset]:
    root = tmp_path_factory.mktemp("work")
    work, dataset = WorkDir(root=root), write_views(root)
    write_completions(work, dataset)
    torch.manual_seed(0)
    encode_chunk(build_autoencoder(), dataset, work, 0, WORKER)
    return work, dataset


def test_each_latent_is_the_picture_that_its_scene_describes(
    encoded: tuple[WorkDir, Dataset],
) -> None:
    work, dataset = encoded
    pictures = load_latents(dataset, work.latent_chunks)
    assert pictures.latents.shape == (len(DRAWINGS) * len(CENTRED), 4, 16, 16)
    torch.manual_seed(0)
    vae = build_autoencoder()
    compared = 0
    for latent, index, scene in zip(
        pictures.latents, pictures.drawings, pictures.scenes, strict=True
    ):
        if scene.layout != "whole" or scene.colour is not None:
            continue
        view = torch.from_numpy(np.array(dataset.views[index, 0]))
        view = ink(view, dataset.drawings[index].style, scene.background)
        colour = torch.tensor([BACKGROUNDS[scene.background or "white"]])
        with torch.no_grad():
            expected = vae.encoder(composite(view[None], colour))[0]
        assert torch.allclose(latent.float(), expected, atol=2e-3)
        compared += 1
    assert set(pictures.poses) == {0}
    assert compared >= 3 * len(DRAWINGS)


def test_another_chunk_shows_other_scenes(encoded: tuple[WorkDir, Dataset], tmp_path: Path) -> None:
    work, dataset = encoded
    other = WorkDir(root=tmp_path)
    write_completions(other, dataset)
    encode_chunk(build_autoencoder(), dataset, other, 1, WORKER)
    first, second = (load_latents(dataset, w.latent_chunks) for w in (work, other))
    assert first.scenes != second.scenes
    assert set(second.poses) == set(range(len(POSES)))
    both = load_latents(dataset, [*work.latent_chunks, *other.latent_chunks])
    assert (
        len(both.latents)
        == len(both.drawings)
        == len(both.scenes)
        == (len(DRAWINGS) * (len(CENTRED) + len(POSED)))
    )


@pytest.mark.parametrize(
    ("number", "wanted", "poses"),
    [
        (2, ON_BACKGROUNDS, {0}),
        (3, POSED_ON_BACKGROUNDS, set(range(1, len(POSES)))),
    ],
)
def test_later_chunks_show_everything_on_further_backgrounds(
    encoded: tuple[WorkDir, Dataset],
    tmp_path: Path,
    number: int,
    wanted: tuple[tuple[str, int], ...],
    poses: set[int],
) -> None:
    dataset, other = encoded[1], WorkDir(root=tmp_path)
    write_completions(other, dataset)
    encode_chunk(build_autoencoder(), dataset, other, number, WORKER)
    pictures = load_latents(dataset, other.latent_chunks)
    assert len(pictures.latents) == len(DRAWINGS) * len(wanted)
    # None of the tiny set's things may be painted: they get a background instead.
    assert {kind_of(scene) for scene in pictures.scenes} == {"background"}
    assert set(pictures.poses) == poses


def test_latents_of_other_drawings_are_refused(encoded: tuple[WorkDir, Dataset]) -> None:
    work, dataset = encoded
    fewer = Dataset(
        concepts=dataset.concepts, drawings=dataset.drawings[:1], views=dataset.views[:1]
    )
    with pytest.raises(ValueError, match="other drawings"):
        load_latents(fewer, work.latent_chunks)
    with pytest.raises(ValueError, match="no latents"):
        load_latents(dataset, [])


def test_scaled_latents_have_unit_deviation() -> None:
    latents = 3.0 * torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    scaled = latents.half().float() * latent_scale(latents.half())
    assert float(scaled.std()) == pytest.approx(1.0, abs=1e-3)


def test_what_is_held_out_is_fixed_and_of_things_that_no_earlier_weights_saw() -> None:
    pairs = held_out_pairs(CONCEPTS)
    assert len(pairs) == round(SHARE * 3 * len(CONCEPTS))
    assert pairs == held_out_pairs(load_concepts())
    assert min(index for index, _ in pairs) >= FIRST_EDITION_COUNT
    assert len({index for index, _ in pairs}) == len(pairs)
    assert len(COLOUR_CONCEPTS) == 20
    assert set(COLOUR_CONCEPTS) <= {concept.label for concept in CONCEPTS}


def test_things_whose_colours_are_held_out_are_never_painted(
    encoded: tuple[WorkDir, Dataset],
) -> None:
    work, dataset = encoded
    views = shown_views(dataset, work)
    assert CONCEPTS[0].label in COLOUR_CONCEPTS
    assert paintable_colour(dataset, views, 0) is None
    assert paintable_colour(dataset, views, 2) is None  # a green apple: no name without a colour
    assert paintable_colour(dataset, views, 3) is None  # lines
    scenes = [draw_scene("colour", CONCEPTS[0], None, Random(seed)) for seed in range(20)]
    assert {kind_of(scene) for scene in scenes} == {"background"}


def test_only_what_can_be_counted_is_counted() -> None:
    grapes = next(concept for concept in CONCEPTS if concept.phrase == "grapes")
    layouts = {draw_scene("layout", grapes, None, Random(seed)).layout for seed in range(200)}
    assert layouts == set(LAYOUTS) - {"whole", "two", "three", "four"}


@pytest.mark.parametrize(("layout", "count"), [("small", 1), ("two", 2), ("three", 3), ("four", 4)])
def test_a_layout_holds_so_many_things_of_half_size(layout: str, count: int) -> None:
    view = torch.zeros(4, 128, 128)
    view[:, 32:96, 32:96] = 255.0
    laid = lay_out(view, layout)
    assert float(laid.sum()) == pytest.approx(count * float(view.sum()) / 4)
    assert lay_out(view, "whole") is view


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "whole"])
def test_things_lie_on_the_part_that_they_cover_and_fill_it(layout: str) -> None:
    laid = lay_out(torch.ones(4, 128, 128), layout)[0]
    covered_in_pixels = covered(layout, 16).repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert torch.equal(laid > 0, covered_in_pixels)
    assert covered("whole", 16).all()


def test_what_lies_around_a_thing_is_of_a_picture_on_the_same_background() -> None:
    scenes = [
        Scene(layout="top left"),
        Scene(background="blue", layout="bottom right"),
        Scene(),
        Scene(background="blue"),
    ]
    latents = torch.arange(4).half()[:, None, None, None].expand(-1, 4, 16, 16)
    rows = torch.arange(4).repeat(50)
    surroundings, generator = Surroundings(scenes, 16), torch.Generator().manual_seed(0)
    got, own = surroundings.surround(rows, latents, 1.0, generator)
    around: dict[int, set[float]] = {}
    for row, latent, mine in zip(rows.tolist(), got, own, strict=True):
        assert torch.equal(mine[0], covered(scenes[row].layout, 16))
        assert set(latent[:, mine[0]].unique().tolist()) == {float(row)}
        around.setdefault(row, set()).update(latent[:, ~mine[0]].unique().tolist())
    assert around == {0: {0.0, 2.0}, 1: {1.0, 3.0}, 2: set(), 3: set()}
    alone, all_own = surroundings.surround(rows, latents, 0.0, generator)
    assert torch.equal(alone, latents[rows])
    assert all_own.all()


def test_a_line_drawing_turns_white_on_black() -> None:
    view = torch.zeros(4, 128, 128)
    view[3, 32:96, 32:96] = 255.0
    black, blue = (draw_picture(view, "line", Scene(background=name)) for name in ("black", "blue"))
    assert float(black[:, 64, 64].mean()) == pytest.approx(1.0)
    assert float(blue[:, 64, 64].mean()) == pytest.approx(-1.0)


@pytest.fixture
def marked(tmp_path: Path) -> tuple[EncodedPictures, Dataset, CLIPTokenizer, list[tuple[int, str]]]:
    """Latents that hold the number of their row; the last two drawings are of one thing."""
    drawings = [(0, "3d"), (2, "flat"), (2, "3d")]
    dataset = write_views(tmp_path, tuple(drawings))
    scenes = (Scene(), Scene(background="blue"), Scene(layout="small"))
    rows = [(index, scene) for index in range(3) for scene in scenes]
    marks = torch.arange(len(rows)).half()[:, None, None, None].expand(-1, 4, 1, 1)
    encoded = EncodedPictures(
        latents=marks.contiguous(),
        drawings=tuple(index for index, _ in rows),
        poses=tuple(row % 3 for row in range(len(rows))),
        scenes=tuple(scene for _, scene in rows),
    )
    chosen = [CONCEPTS[0], CONCEPTS[2]]
    train_tokenizer(chosen, tmp_path / "tokenizer")
    return encoded, dataset, load_tokenizer(tmp_path / "tokenizer"), drawings


def test_captions_say_what_their_latents_show(
    marked: tuple[EncodedPictures, Dataset, CLIPTokenizer, list[tuple[int, str]]],
) -> None:
    encoded, dataset, tokenizer, drawings = marked
    draws = Draws(encoded, dataset, tokenizer, 2.0, caption_count=5)
    batch = draws.batch(600, torch.Generator().manual_seed(0))
    empty = tokenize(tokenizer, [""])[0]
    named = nameless = 0
    for tokens, latent in zip(batch.tokens_BL, batch.latents_BChw, strict=True):
        row = round(float(latent.flatten()[0]) / 2.0)
        if torch.equal(tokens, empty):
            continue
        caption = str(tokenizer.decode(tokens, skip_special_tokens=True))
        index, style = drawings[encoded.drawings[row]]
        blue = encoded.scenes[row].background == "blue"
        small = encoded.scenes[row].layout == "small"
        said_small = bool({"small", "tiny"} & _words(caption))
        if not _names(caption, CONCEPTS[index].names):
            nameless += 1
            assert blue >= ("blue" in caption)
            assert small >= said_small
            continue
        named += 1
        assert style == "3d" or style in caption
        assert blue == ("blue" in caption)
        assert small == said_small
    assert 500 < named + nameless < 580
    assert 0 < nameless < 60


def test_half_of_the_things_on_a_part_of_the_canvas_can_be_surrounded(
    marked: tuple[EncodedPictures, Dataset, CLIPTokenizer, list[tuple[int, str]]],
) -> None:
    encoded, dataset, tokenizer, _ = marked
    wide = replace(encoded, latents=encoded.latents.expand(-1, 4, 16, 16).contiguous())

    def surrounded(share: float) -> float:
        draws = Draws(wide, dataset, tokenizer, 1.0, caption_count=1, surrounded_share=share)
        batch = draws.batch(2000, torch.Generator().manual_seed(0))
        return float((~batch.own_B1hw).flatten(1).any(1).float().mean())

    assert surrounded(0.0) == 0.0
    assert surrounded(0.5) == pytest.approx(surrounded(1.0) / 2, abs=0.03)
    assert surrounded(1.0) > 0.1


def test_the_centred_pictures_can_be_drawn_alone(
    marked: tuple[EncodedPictures, Dataset, CLIPTokenizer, list[tuple[int, str]]],
) -> None:
    encoded, dataset, tokenizer, _ = marked
    draws = Draws(encoded, dataset, tokenizer, 1.0, caption_count=1, centred=True)
    batch = draws.batch(50, torch.Generator().manual_seed(0))
    assert {encoded.poses[int(row)] for row in batch.latents_BChw[:, 0, 0, 0]} == {0}


def test_three_of_four_pictures_of_a_kind_are_in_another_pose(tmp_path: Path) -> None:
    poses = (0, 1, 2, 3, 0, 0)
    scenes = (PLAIN, PLAIN, PLAIN, PLAIN, Scene(layout="small"), Scene(background="blue"))
    dataset = write_views(tmp_path, ((0, "3d"),))
    encoded = EncodedPictures(
        latents=torch.arange(len(poses)).half()[:, None, None, None].expand(-1, 4, 1, 1),
        drawings=(0,) * len(poses),
        poses=poses,
        scenes=scenes,
    )
    train_tokenizer([CONCEPTS[0]], tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    draws = Draws(encoded, dataset, tokenizer, 1.0, caption_count=1)
    batch = draws.batch(4000, torch.Generator().manual_seed(0))
    shares = batch.latents_BChw[:, 0, 0, 0].long().bincount() / 4000
    named = KIND_SHARES["plain"] + KIND_SHARES["layout"] + KIND_SHARES["background"]
    plain = KIND_SHARES["plain"] / named
    assert float(shares[0]) == pytest.approx((1 - POSED_SHARE) * plain, abs=0.02)
    assert shares[1:4].tolist() == pytest.approx([POSED_SHARE * plain / 3] * 3, abs=0.02)
    assert float(shares[4]) == pytest.approx(KIND_SHARES["layout"] / named, abs=0.03)
    assert float(shares[5]) == pytest.approx(KIND_SHARES["background"] / named, abs=0.03)


def test_a_drawing_can_be_shown_more_often(
    marked: tuple[EncodedPictures, Dataset, CLIPTokenizer, list[tuple[int, str]]],
) -> None:
    encoded, dataset, tokenizer, _ = marked

    def share(emphasis: dict[int, float]) -> float:
        draws = Draws(encoded, dataset, tokenizer, 1.0, caption_count=1, emphasis=emphasis)
        batch = draws.batch(1000, torch.Generator().manual_seed(0))
        rows = batch.latents_BChw[:, 0, 0, 0].tolist()
        return sum(encoded.drawings[int(row)] == 0 for row in rows) / len(rows)

    plain = share({})
    assert share({0: 3.0}) == pytest.approx(3 * plain / (1 + 2 * plain), abs=0.05)


def test_everyday_things_come_twice_as_often(tmp_path: Path) -> None:
    dataset = write_views(tmp_path, ((0, "3d"), (FIRST_EDITION_COUNT, "3d")))
    encoded = EncodedPictures(
        latents=torch.tensor([0.0, 1.0]).half()[:, None, None, None].expand(-1, 4, 1, 1),
        drawings=(0, 1),
        poses=(0, 0),
        scenes=(Scene(), Scene()),
    )
    train_tokenizer([CONCEPTS[0]], tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    draws = Draws(encoded, dataset, tokenizer, 1.0, caption_count=1)
    batch = draws.batch(1000, torch.Generator().manual_seed(0))
    assert float((batch.latents_BChw == 0).float().mean()) == pytest.approx(2 / 3, abs=0.05)


def _names(caption: str, names: tuple[str, ...]) -> bool:
    return any(name.split(" ", 1)[-1] in caption or name in caption for name in names)


def _words(caption: str) -> set[str]:
    return set(caption.replace(",", " ").split())
