"""Drawings and views: rasterising, posing, compositing."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from models.recipe.captions import load_concepts
from models.recipe.dataset import IMAGE_SIZE, composite, draw_views, find_artist, load_dataset
from models.recipe.pack import pack
from models.recipe.sources import FLUENT_3D, Package, rasterise, resize_premultiplied, unpack
from models.recipe.workdir import WorkDir
from tests.models.tiny import write_views

RED = (255, 0, 0, 255)


def test_only_the_pinned_tarball_is_unpacked(tmp_path: Path) -> None:
    tarball = tmp_path / "art.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        entry = tarfile.TarInfo("package/package.json")
        entry.size = 2
        archive.addfile(entry, io.BytesIO(b"{}"))
    with pytest.raises(ValueError, match="is not @lobehub/fluent-emoji-3d"):
        unpack(tarball, FLUENT_3D, tmp_path / "art")
    assert not (tmp_path / "art").exists()
    digest = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    unpack(tarball, Package(name="art", version="1", sha512=digest), tmp_path / "art")
    assert (tmp_path / "art" / "package" / "package.json").read_text() == "{}"


def test_an_svg_becomes_straight_alpha_pixels() -> None:
    body = '<circle cx="16" cy="16" r="8" fill="#f00"/>'
    picture = np.asarray(rasterise(body, 32, 64))
    assert picture.shape == (64, 64, 4)
    assert tuple(picture[32, 32]) == RED
    assert picture[0, 0, 3] == 0


def test_resizing_leaves_no_dark_fringe() -> None:
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste(RED, (16, 16, 48, 48))
    small = resize_premultiplied(picture, 24)
    visible = small[small[..., 3] > 16]
    assert len(visible) > 100
    assert (visible[:, 0] >= 250).all()


def test_views_are_premultiplied_and_the_first_is_centred() -> None:
    rgba = np.zeros((256, 256, 4), np.uint8)
    rgba[64:192, 96:160] = RED
    views = draw_views(rgba, 4, Random(0))
    assert views.shape == (4, 4, IMAGE_SIZE, IMAGE_SIZE)
    assert (views[:, :3] <= views[:, 3:]).all()
    rows, columns = np.nonzero(views[0, 3] > 127)
    assert rows.min() + rows.max() == pytest.approx(IMAGE_SIZE, abs=2)
    assert columns.min() + columns.max() == pytest.approx(IMAGE_SIZE, abs=2)
    assert any((views[0] != view).any() for view in views[1:])


def test_compositing_shows_the_background_where_nothing_is() -> None:
    views = torch.zeros(1, 4, 2, 2, dtype=torch.uint8)
    views[0, :, 0, 0] = torch.tensor([100, 0, 0, 255])
    views[0, :, 0, 1] = torch.tensor([100, 0, 0, 128])
    picture = composite(views, torch.tensor([[0, 51, 255]]))
    pixels = ((picture[0] + 1.0) * 127.5).round().to(torch.int64)
    assert pixels[:, 0, 0].tolist() == [100, 0, 0]
    assert pixels[:, 0, 1].tolist() == [100, 25, 127]
    assert pixels[:, 1, 1].tolist() == [0, 51, 255]


def test_packed_drawings_come_back(tmp_path: Path) -> None:
    def draw(style: str, label: str, side: int) -> np.ndarray:
        picture = np.zeros((side, side, 4), np.uint8)
        picture[side // 4 : -side // 4, side // 4 : -side // 4] = (len(label), 0, 200, 255)
        return picture if style == "line" else picture[:, ::-1]

    work, concepts = WorkDir(root=tmp_path), load_concepts()[:2]
    pack(work, concepts, draw)
    artist = find_artist(work)
    again = artist("line", "red apple", 192)
    assert (again == draw("line", "red apple", 192)).all()
    solid = artist("3d", "green apple", 64)[24:40, 24:40].astype(int)
    assert np.abs(solid - (len("green apple"), 0, 200, 255)).max() < 12
    with pytest.raises(KeyError):
        artist("3d", "no such thing", 64)


def test_views_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    write_views(tmp_path)
    index = json.loads((tmp_path / "views.json").read_text())
    index["labels"].reverse()
    (tmp_path / "views.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="another vocabulary"):
        load_dataset(tmp_path)
