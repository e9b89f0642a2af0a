"""The settings of the Kubernetes backend: all mistakes at once, none of them in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.runtime.settings import load
from services.trainer.settings import TrainerSettings

_GOOD = {
    "BACKEND": "kubernetes",
    "DATA_DIR": "/data",
    "BASE_MODELS": "tiny=/models/tiny,mine=/data/models/mine",
    "KUBERNETES_NAMESPACE": "limner-runs",
    "KUBERNETES_IMAGE": "registry.example/limner:1",
    "KUBERNETES_VOLUMES": "runs=/data, models=/models:ro",
    "KUBERNETES_REPORTS_TARGET": "limner-trainer.limner:50064",
    "KUBERNETES_RUN_KEY": "k" * 32,
}


def _load(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> TrainerSettings:
    for name, value in (_GOOD | changes).items():
        if value is not None:
            monkeypatch.setenv(f"LIMNER_TRAINER_{name}", value)
    return load(TrainerSettings)


def test_whole_settings_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _load(monkeypatch, KUBERNETES_TOLERATIONS="gpu,spot=true:NoSchedule")
    assert [(claim.name, str(claim.path), claim.is_read_only) for claim in settings.claims] == [
        ("runs", "/data", False),
        ("models", "/models", True),
    ]
    assert [(one.key, one.value, one.effect) for one in settings.tolerations] == [
        ("gpu", None, None),
        ("spot", "true", "NoSchedule"),
    ]
    assert "k" * 32 not in repr(settings)


def test_without_kubernetes_nothing_of_it_is_required() -> None:
    assert TrainerSettings().backend == "subprocess"


def test_every_variable_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as caught:
        _load(
            monkeypatch,
            KUBERNETES_NAMESPACE=None,
            KUBERNETES_IMAGE=None,
            KUBERNETES_REPORTS_TARGET=None,
            KUBERNETES_RUN_KEY="short",
            KUBERNETES_VOLUMES="runs=/data",
        )
    told = str(caught.value)
    for line in (
        "LIMNER_TRAINER_KUBERNETES_NAMESPACE is required with Kubernetes",
        "LIMNER_TRAINER_KUBERNETES_IMAGE is required with Kubernetes",
        "LIMNER_TRAINER_KUBERNETES_REPORTS_TARGET is required with Kubernetes",
        "LIMNER_TRAINER_KUBERNETES_RUN_KEY=(hidden): must have at least 32 characters",
        "LIMNER_TRAINER_BASE_MODELS: /models/tiny is on none of LIMNER_TRAINER_KUBERNETES_VOLUMES",
    ):
        assert line in told
    assert "short" not in told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NAMESPACE", "Not_A_Name"),
        ("VOLUMES", "runs"),
        ("VOLUMES", "runs=relative"),
        ("VOLUMES", "runs=/data:rw"),
        ("MEMORY", "24 GB"),
        ("CPU", "many"),
        ("GPU_COUNT", "-1"),
        ("NODE_COUNT", "0"),
        ("NODE_SELECTOR", "gpu"),
        ("TOLERATIONS", "spot:Never"),
        ("KEEP_S", "3600"),
        ("USER_ID", "0"),
        ("REPORTS_TARGET", "nowhere"),
    ],
)
def test_a_bad_value_is_told_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    with pytest.raises(SystemExit, match=f"LIMNER_TRAINER_KUBERNETES_{name}="):
        _load(monkeypatch, **{f"KUBERNETES_{name}": value})


def test_a_file_of_an_authority_is_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _load(monkeypatch, KUBERNETES_REPORTS_CA="/tls/ca.pem")
    assert settings.kubernetes_reports_ca == Path("/tls/ca.pem")
