from __future__ import annotations

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import Address, CommaSeparated, Settings, load

PEPPER = "p" * 32


class DoorSettings(Settings):
    """As a service declares its own."""

    model_config = SettingsConfigDict(env_prefix="LIMNER_DOOR_")

    address: Address = Address("127.0.0.1:50051")
    backends: CommaSeparated[Address] = ()
    key_pepper: SecretStr = Field(min_length=32)
    grace_s: float = Field(default=30, ge=0)
    models: CommaSeparated[str] = ("one",)


def test_defaults_and_variables_make_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_DOOR_KEY_PEPPER", PEPPER)
    monkeypatch.setenv("LIMNER_DOOR_BACKENDS", "a:1, [::1]:2 ,")
    monkeypatch.setenv("LIMNER_DOOR_MODELS", "x=y,z")
    settings = load(DoorSettings)
    assert settings.address == "127.0.0.1:50051"
    assert settings.backends == (Address("a:1"), Address("[::1]:2"))
    assert (settings.backends[1].host, settings.backends[1].port) == ("::1", 2)
    assert settings.models == ("x=y", "z")
    assert settings.key_pepper.get_secret_value() == PEPPER
    with pytest.raises(ValidationError):
        settings.grace_s = 1  # type: ignore[misc]


def test_all_mistakes_are_reported_at_once_and_no_secret_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LIMNER_DOOR_KEY_PEPPER", "too-short-a-secret")
    monkeypatch.setenv("LIMNER_DOOR_ADDRESS", "nowhere")
    monkeypatch.setenv("LIMNER_DOOR_BACKENDS", "a:1,b")
    monkeypatch.setenv("LIMNER_DOOR_GRACE_S", "-1")
    monkeypatch.setenv("LIMNER_DOOR_MODLES", "x")
    with pytest.raises(SystemExit) as caught:
        load(DoorSettings)
    title, *lines = str(caught.value).splitlines()
    assert title == "Bad settings in the environment:"
    assert [line.split("=")[0].split(" is ")[0].strip() for line in lines] == [
        "LIMNER_DOOR_ADDRESS",
        "LIMNER_DOOR_BACKENDS",
        "LIMNER_DOOR_GRACE_S",
        "LIMNER_DOOR_KEY_PEPPER",
        "LIMNER_DOOR_MODLES",
    ]
    assert lines[0] == (
        "  LIMNER_DOOR_ADDRESS='nowhere': "
        "must be host:port with a port from 0 to 65535, got 'nowhere'"
    )
    assert "LIMNER_DOOR_GRACE_S='-1'" in lines[2]
    assert "too-short-a-secret" not in str(caught.value)
    assert "(hidden)" in lines[3]
    assert lines[4].endswith("did you mean LIMNER_DOOR_MODELS?")


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMNER_DOOR_KEY_PEPPER", raising=False)
    with pytest.raises(SystemExit, match="LIMNER_DOOR_KEY_PEPPER is required"):
        load(DoorSettings)


def test_the_variables_of_a_kubernetes_service_are_no_mistakes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LIMNER_DOOR_KEY_PEPPER", PEPPER)
    for suffix in ("SERVICE_HOST", "SERVICE_PORT", "PORT", "PORT_50051_TCP_ADDR"):
        monkeypatch.setenv(f"LIMNER_DOOR_{suffix}", "10.0.0.1")
    assert load(DoorSettings).address == "127.0.0.1:50051"


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "host:x", "host:65536", "host:-1", "::1:50051", "host:٣"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be host:port|brackets"):
        Address(text)
