"""What `limner up` settles before anything starts: ports, models, folder, pepper, first key."""

from __future__ import annotations

import io
import socket
import stat
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from services.client.cli.app import run
from services.gateway.audit import Actor
from services.gateway.key_format import digest_key, is_well_formed
from services.gateway.key_store import KeyStore
from services.gateway.scopes import ALL_SCOPES
from services.gateway.tiers import UNLIMITED_TIER
from services.local.data_folder import ACCOUNT, DataFolder
from services.local.picture import in_half_blocks
from services.local.ports import HOST, free_port, is_free
from services.local.settings import SetupError, plan_suite
from services.storage.database import open_engine


async def test_the_first_start_makes_a_key_that_the_gateway_knows(tmp_path: Path) -> None:
    data = DataFolder(path=tmp_path / "data")
    pepper = await data.prepare()
    key = data.read_key()
    assert is_well_formed(key)
    assert stat.S_IMODE(data.key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(data.path.stat().st_mode) == 0o700
    engine = open_engine(data.database_url)
    record = await KeyStore(engine=engine).find_key(digest_key(key, pepper.encode()))
    await engine.dispose()
    assert record is not None
    assert (record.account, record.tier, record.scopes) == (ACCOUNT, UNLIMITED_TIER, ALL_SCOPES)


async def test_later_starts_keep_pepper_and_key(tmp_path: Path) -> None:
    data = DataFolder(path=tmp_path)
    first = (await data.prepare(), data.read_key())
    assert (await data.prepare(), data.read_key()) == first


async def test_a_key_that_no_longer_counts_is_replaced(tmp_path: Path) -> None:
    data = DataFolder(path=tmp_path)
    pepper = await data.prepare()
    first = data.read_key()
    engine = open_engine(data.database_url)
    store = KeyStore(engine=engine)
    record = await store.find_key(digest_key(first, pepper.encode()))
    assert record is not None
    await store.revoke_key(record.key_id, actor=Actor(account="t", key_id="", request_id="r"))
    await engine.dispose()
    await data.prepare()
    assert data.read_key() != first
    assert is_well_formed(data.read_key())


def test_a_port_in_use_is_said_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not is_free(port)
        assert free_port(port) != port
        with pytest.raises(SetupError, match=f"port {port} is in use.*--port"):
            plan_suite(tmp_path, port=port, models="m=folder")
    assert is_free(port)
    assert free_port(port) == port
    assert plan_suite(tmp_path, port=port, models="m=folder").address == f"{HOST}:{port}"


def test_models_come_from_the_option_then_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMNER_DIFFUSION_MODELS", "b=there")
    assert plan_suite(tmp_path, port=None, models="a=here").models == "a=here"
    settings = plan_suite(tmp_path, port=None, models=None)
    assert settings.diffusion().environment["LIMNER_DIFFUSION_MODELS"] == "b=there"


def test_the_gateway_is_tied_to_the_servers_behind_it(tmp_path: Path) -> None:
    settings = plan_suite(tmp_path, port=None, models="m=folder")
    gateway, diffusion = settings.gateway("p" * 32), settings.diffusion()
    backends = f"{diffusion.address},{settings.upscale().address}"
    assert gateway.environment["LIMNER_GATEWAY_BACKENDS"] == backends
    alone = settings.gateway("p" * 32, upscales=False)
    assert alone.environment["LIMNER_GATEWAY_BACKENDS"] == diffusion.address
    assert gateway.environment["LIMNER_GATEWAY_DATABASE_URL"].startswith("sqlite+aiosqlite:////")
    ports = {settings.gateway_port, settings.diffusion_port, settings.upscale_port}
    ports |= {settings.gateway_metrics_port, settings.diffusion_metrics_port}
    assert len(ports | {settings.upscale_metrics_port}) == 6


def test_a_picture_becomes_two_pixels_a_character() -> None:
    picture = Image.new("RGB", (4, 4), "red")
    picture.paste("blue", (0, 2, 4, 4))
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    text = in_half_blocks(encoded.getvalue(), max_width=2)
    assert text.plain == "▀▀\n"
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(in_half_blocks(encoded.getvalue()))
    output = console.file
    assert isinstance(output, io.StringIO)
    assert "38;2;255;0;0" in output.getvalue()
    assert "38;2;0;0;255" in output.getvalue()


def test_models_that_are_folders_can_be_trained_from(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    models = f"here={tmp_path}/here, hub=owner/model,gone={tmp_path}/gone"
    settings = plan_suite(tmp_path, port=None, models=models)
    assert settings.trainable == f"here={tmp_path.resolve()}/here"
    environment = settings.trainer().environment
    assert environment["LIMNER_TRAINER_BASE_MODELS"] == settings.trainable
    catalog = environment["LIMNER_TRAINER_CATALOG_DIR"]
    assert settings.diffusion().environment["LIMNER_DIFFUSION_CATALOG_DIR"] == catalog
    address = settings.gateway("pepper", trains=True).environment["LIMNER_GATEWAY_TRAINER"]
    assert address == settings.trainer().address


def test_a_folder_that_cannot_be_made_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "--port", str(free_port()), "--data-dir", "/proc/none"]) == 1
    assert capsys.readouterr().err == "limner: /proc/none: No such file or directory\n"


def test_a_folder_that_another_suite_runs_in_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with DataFolder(path=tmp_path).occupied():
        assert run(["up", "--port", str(free_port()), "--data-dir", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"limner: another `limner up` runs in {tmp_path}; stop it, or choose")
    with DataFolder(path=tmp_path).occupied():
        pass


@pytest.mark.parametrize("models", ["=", "tiny", "tiny=", "=folder", "tiny=folder,="])
def test_models_without_name_or_place_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], models: str
) -> None:
    assert run(["up", "--data-dir", str(tmp_path), "--models", models]) == 1
    assert "--models" in capsys.readouterr().err


def test_without_a_trainer_the_gateway_has_none(tmp_path: Path) -> None:
    settings = plan_suite(tmp_path, port=None, models="hub=owner/model")
    assert not settings.trains
    assert "LIMNER_GATEWAY_TRAINER" not in settings.gateway("pepper").environment
    assert "trainer" not in settings.metrics_urls
