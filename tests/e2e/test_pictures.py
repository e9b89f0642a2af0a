"""From a prompt to a picture through gateway and diffusion server, and every way to ask wrongly."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from services.client import (
    AsyncClient,
    GeneratedImage,
    GenerateOptions,
    InvalidRequest,
    ModelNotFound,
    Preview,
    Unauthenticated,
)
from services.gateway.key_format import make_key
from tests.e2e.running_suite import RunningSuite, image_format


def test_the_command_turns_a_prompt_into_a_png(suite: RunningSuite, folder: Path) -> None:
    done = suite.limner("generate", "a red apple", "-o", "apple.png", "--seed", "1", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "--seed 1" in done.stdout
    with Image.open(folder / "apple.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert len(set(picture.convert("L").get_flattened_data())) > 8


def test_the_printed_values_draw_the_same_picture_again(suite: RunningSuite) -> None:
    with suite.client() as client:
        first = client.generate("a red apple")
        again = client.generate("a red apple", seed=first.accepted.seed)
        other = client.generate("a red apple", seed=first.accepted.seed + 1)
    assert _pixels(first.image) == _pixels(again.image)
    assert _pixels(first.image) != _pixels(other.image)


def test_formats_samples_and_previews(suite: RunningSuite, folder: Path) -> None:
    line = "generate dog -o d.webp -n 2 --steps 4 --preview p.png --preview-every 1 --json"
    done = suite.limner(*line.split(), folder=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [each["path"] for each in report["images"]] == ["d-0.webp", "d-1.webp"]
    assert report["images"][1]["seed"] == (report["seed"] + 1) % 2**32
    assert image_format(folder / "d-1.webp") == "WEBP"
    assert image_format(folder / "p-0.png") == "PNG"


async def test_the_asynchronous_client_gets_previews(suite: RunningSuite) -> None:
    options = GenerateOptions(step_count=4, preview_interval=1)
    async with (
        AsyncClient(suite.address, api_key=suite.key) as client,
        client.stream_generate("a dog", **options) as stream,
    ):
        kinds = [type(event) async for event in stream]
    assert Preview in kinds
    assert kinds[-1] is GeneratedImage


def test_models_and_account_are_told(suite: RunningSuite, folder: Path) -> None:
    listed = suite.limner("models", folder=folder)
    assert (listed.returncode, "limner-emoji" in listed.stdout) == (0, True)
    assert "red apple" in suite.limner("models", "--words", folder=folder).stdout
    assert suite.limner("whoami", folder=folder).stdout.startswith("account local, key ")


def test_a_wrong_key_is_refused_with_a_reason(suite: RunningSuite) -> None:
    typo = suite.key[:-1] + ("a" if suite.key[-1] != "a" else "b")
    expected = {"nonsense": "KEY_MALFORMED", typo: "KEY_MALFORMED", make_key().text: "KEY_UNKNOWN"}
    for key, reason in expected.items():
        with suite.client(key=key) as client, pytest.raises(Unauthenticated) as caught:
            client.generate("a dog")
        assert caught.value.reason == reason


def test_bad_input_lists_all_violations(suite: RunningSuite, folder: Path) -> None:
    with suite.client() as client, pytest.raises(InvalidRequest) as caught:
        client.generate(
            "",
            width=13,
            height=10**6,
            step_count=0,
            guidance_scale=float("nan"),
            seed=-1,
            sample_count=10**6,
            preview_interval=-1,
        )
    wrong = {each.field for each in caught.value.violations}
    assert wrong == {
        *("prompt", "width", "height", "step_count", "guidance_scale", "seed"),
        *("sample_count", "preview_interval"),
    }
    done = suite.limner("generate", "", "--steps", "0", "-o", "d.png", folder=folder)
    assert done.returncode == 1
    assert {"  PROMPT", "  --steps"} <= {line.split(":")[0] for line in done.stderr.splitlines()}
    assert list(folder.iterdir()) == []


def test_an_unknown_model_names_those_that_exist(suite: RunningSuite) -> None:
    with suite.client() as client, pytest.raises(ModelNotFound, match="limner-emoji"):
        client.generate("a dog", model="nothing")


def _pixels(image: GeneratedImage) -> bytes:
    with Image.open(io.BytesIO(image.data)) as picture:
        return picture.tobytes()
