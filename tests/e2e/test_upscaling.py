"""Upscaling through the real processes: the command, the bill, a cancel, a kill in the middle."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.client import Client, InvalidRequest, TileProgress, Unavailable, UpscaleStream
from tests.e2e.running_suite import ONCE, RunningSuite, image_format, wait_for


def _photo(path: Path, width: int, height: int) -> Path:
    from skimage import data

    Image.fromarray(data.chelsea()).resize((width, height)).save(path)
    return path


def _credits(client: Client) -> tuple[int, int | None]:
    """What the ledger has charged this month, and what that leaves."""
    usage = client.usage()
    return usage.charged_millicredits, usage.remaining_millicredits


def _kill_at_first_tile(suite: RunningSuite, stream: UpscaleStream) -> None:
    """Read to the end, and end the server with the first tile."""
    for event in stream:
        if isinstance(event, TileProgress) and suite.upscale.process.poll() is None:
            suite.upscale.end(signal.SIGKILL)


def test_the_command_makes_a_picture_larger_and_it_is_charged(
    suite: RunningSuite, folder: Path
) -> None:
    _photo(folder / "in.jpg", 100, 70)
    with suite.client() as client:
        before = client.usage().charged_millicredits
    ended = suite.limner(
        *("upscale", "in.jpg", "-o", "out.png", "--scale", "4", "--json"), folder=folder
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert (told["width"], told["height"], told["model"]) == (400, 280, "realesr-animevideov3")
    assert image_format(folder / "out.png") == "PNG"
    with Image.open(folder / "in.jpg") as source, Image.open(folder / "out.png") as larger:
        assert larger.size == (400, 280)
        # The same picture: reduced again, it is what it was.
        reduced = np.asarray(larger.resize(source.size, Image.Resampling.BOX)).astype(int)
        assert np.abs(reduced - np.asarray(source)).mean() < 8
    with suite.client() as client:
        assert client.usage().charged_millicredits > before


def test_bad_input_is_told_with_all_its_fields(suite: RunningSuite, folder: Path) -> None:
    (folder / "text.png").write_text("no picture")
    ended = suite.limner("upscale", "text.png", "--scale", "9", folder=folder)
    assert ended.returncode == 1
    assert "IMAGE: must be a PNG, JPEG or WebP file" in ended.stderr
    assert "--scale: must be between 2 and 4" in ended.stderr
    with suite.client() as client, pytest.raises(InvalidRequest) as raised:
        client.upscale(b"", scale=0.5)
    assert {each.field for each in raised.value.violations} == {"image", "scale"}


def test_a_stream_that_is_closed_in_the_middle_frees_the_device_and_costs_nothing(
    suite: RunningSuite, folder: Path
) -> None:
    photo = _photo(folder / "large.jpg", 1600, 1200)
    with suite.client() as client:
        before = _credits(client)
        with client.stream_upscale(photo) as stream:
            for event in stream:
                if isinstance(event, TileProgress):
                    assert event.completed_tile_count < event.total_tile_count
                    break
        wait_for(suite.is_idle, "the device is free")
        wait_for(lambda: _credits(client) == before, "the credits are back")


def test_a_server_that_is_killed_in_the_middle_costs_nothing(
    suite: RunningSuite, folder: Path
) -> None:
    photo = _photo(folder / "large.jpg", 1600, 1200)
    with suite.client(retry=ONCE) as client:
        before = _credits(client)
        with client.stream_upscale(photo) as stream, pytest.raises(Unavailable):
            _kill_at_first_tile(suite, stream)
        wait_for(lambda: _credits(client) == before, "the credits are back")
    suite.upscale.start()
    suite.wait_until_ready()
