"""Settings of the diffusion server."""

from __future__ import annotations

import pytest

from services.diffusion.settings import DiffusionSettings
from services.runtime.settings import load


def test_without_variables_the_embedded_model_is_served_on_the_loopback_interface() -> None:
    settings = DiffusionSettings()
    assert settings.address == "127.0.0.1:50061"
    (spec,) = settings.model_specs()
    assert (spec.name, spec.path_or_hub_id) == ("limner-emoji", "models/limner-emoji")


def test_models_are_pairs_of_name_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMNER_DIFFUSION_MODELS", "a=some/folder, b=org/model")
    monkeypatch.setenv("LIMNER_DIFFUSION_THREADS", "3")
    specs = load(DiffusionSettings).model_specs()
    assert [(spec.name, spec.path_or_hub_id) for spec in specs] == [
        ("a", "some/folder"),
        ("b", "org/model"),
    ]
    assert specs[0].thread_count == 3


def test_all_mistakes_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mistakes = {
        "MODELS": "nameless",
        "MAX_BATCH_ROWS": "1",
        "MAX_QUEUED_REQUESTS": "none",
        "DEVICE": "tpu",
        "GRACE_S": "-1",
    }
    for name, value in mistakes.items():
        monkeypatch.setenv(f"LIMNER_DIFFUSION_{name}", value)
    with pytest.raises(SystemExit) as raised:
        load(DiffusionSettings)
    assert all(f"LIMNER_DIFFUSION_{name}" in str(raised.value) for name in mistakes)


@pytest.mark.parametrize(
    ("name", "value"), [("MODELS", "a=x,a=y"), ("DEFAULT_MODEL", "unheard-of"), ("MODELS", "")]
)
def test_names_that_cannot_be_told_apart_or_found_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"LIMNER_DIFFUSION_{name}", value)
    with pytest.raises(SystemExit):
        load(DiffusionSettings)
