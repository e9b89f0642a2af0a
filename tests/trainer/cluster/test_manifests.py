"""What a run is to the cluster: valid by its strict schemas, and what a run needs."""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from services.trainer.cluster.manifests import (
    job_manifest,
    run_name,
    secret_manifest,
    service_manifest,
    spec_hash,
)
from services.trainer.job import JobProgress, JobRequest, TrainingJob
from services.trainer.settings import TrainerSettings
from tests.trainer.cluster.harness import RUN_KEY, cluster_settings

RBAC = Path(__file__).parents[3] / "services/trainer/cluster/rbac.yaml"
VERSIONS = ("1.34", "1.35", "1.37")
EVERYTHING: dict[str, Any] = {
    "kubernetes_image_pull_secrets": ("registry",),
    "kubernetes_environment_secrets": ("object-store", "wandb"),
    "kubernetes_gpu_count": 2,
    "kubernetes_node_count": 3,
    "kubernetes_node_selector": ("gpu=h100", "zone=a"),
    "kubernetes_tolerations": ("nvidia.com/gpu", "spot=true:NoSchedule", "team=ai"),
    "kubernetes_runtime_class": "nvidia",
    "kubernetes_priority_class": "batch",
    "kubernetes_queue": "team",
    "kubernetes_reports_ca": Path("/ca.pem"),
}


def settings(**changes: Any) -> TrainerSettings:
    return cluster_settings(Path("/models/tiny"), Path("/data"), **changes)


def training_job(**changes: Any) -> TrainingJob:
    plain: dict[str, Any] = {
        "id": "job_0123456789abcdef0123",
        "account": "alice & co",
        "state": "running",
        "request": JobRequest(
            base_model="tiny",
            dataset_id="d",
            instance_prompt="a sks dog",
            class_prompt="a dog",
            token="sks",
            method="lora",
            configuration_yaml="",
        ),
        "tree": {"base_model": "/models/tiny", "output": "/data/jobs/1/output"},
        "progress": JobProgress(),
        "failure": None,
        "cancel_requested": False,
        "attempt": 1,
        "create_time": datetime.now(UTC),
        "update_time": datetime.now(UTC),
        "reservation": "",
        "warnings": (),
    }
    return TrainingJob(**(plain | changes))


def _manifests(configured: TrainerSettings) -> Iterator[dict[str, Any]]:
    job = training_job()
    yield job_manifest(configured, job)
    yield secret_manifest(configured, job, owner_uid="uid", ca=b"pem")
    yield service_manifest(configured, job, owner_uid="uid")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["least", "everything"])
def test_every_manifest_is_valid(version: str, changes: dict[str, Any]) -> None:
    for manifest in _manifests(settings(**changes)):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_rights_are_valid_and_no_more_than_what_is_used(version: str) -> None:
    documents = list(yaml.safe_load_all(RBAC.read_text()))
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)
    (role,) = (one for one in documents if one["kind"] == "Role")
    granted = {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == {
        *(("jobs", verb) for verb in ("create", "get", "list", "watch", "delete")),
        *(("pods", verb) for verb in ("list", "watch")),
        ("secrets", "create"),
        ("services", "create"),
    }


def test_the_schemas_do_refuse_what_they_do_not_know() -> None:
    manifest = job_manifest(settings(), training_job())
    manifest["spec"]["template"]["spec"]["restartPolice"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


def test_an_attempt_has_one_name_and_one_hash() -> None:
    job = training_job()
    assert run_name(job) == run_name(training_job())
    others = [training_job(attempt=2), training_job(id="job_1"), training_job(account="bob")]
    assert len({run_name(job), *map(run_name, others)}) == 4
    assert len(run_name(training_job(attempt=1000))) <= 52  # room for an index and a pod's suffix
    configured = settings()
    smaller = configured.model_copy(update={"kubernetes_memory": "1Gi"})
    first = spec_hash(job_manifest(configured, job))
    assert first == spec_hash(job_manifest(configured, job))
    assert first != spec_hash(job_manifest(smaller, job))
    assert first != spec_hash(job_manifest(configured, training_job(tree={"output": "/data/2"})))


def test_what_counts_as_a_failure_is_decided_in_this_order() -> None:
    spec = job_manifest(settings(), training_job())["spec"]
    rules = [
        (rule["action"], rule.get("onExitCodes", {}).get("values"))
        for rule in spec["podFailurePolicy"]["rules"]
    ]
    assert rules == [
        ("FailJob", [42]),
        ("Ignore", None),
        ("Ignore", [143]),
        ("FailJob", [137]),
    ]
    conditions = spec["podFailurePolicy"]["rules"][1]["onPodConditions"]
    assert conditions == [{"type": "DisruptionTarget", "status": "True"}]
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["backoffLimit"] == 3
    assert spec["ttlSecondsAfterFinished"] >= 86_400
    assert spec["activeDeadlineSeconds"] == 86_400
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


def test_a_pod_has_no_rights_beyond_its_volumes() -> None:
    pod = job_manifest(settings(), training_job())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounts = {
        mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]
    }
    assert mounts == {
        "/etc/limner/run": True,
        "/tmp": False,
        "/dev/shm": False,
        "/data": False,
        "/models/tiny": True,
    }


def test_neither_token_nor_configuration_is_in_the_job() -> None:
    job = training_job(tree={"output": "/data/1", "instance": {"prompt": "my secret dog"}})
    secret = secret_manifest(settings(), job, owner_uid="uid", ca=None)
    data = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
    told = yaml.safe_dump(job_manifest(settings(), job))
    assert data["token"] not in told
    assert RUN_KEY not in told
    assert "my secret dog" not in told
    assert yaml.safe_load(data["configuration.yaml"])["instance"] == {"prompt": "my secret dog"}
    assert secret["metadata"]["ownerReferences"][0]["uid"] == "uid"


def test_settings_reach_the_pod() -> None:
    manifest = job_manifest(settings(**EVERYTHING), training_job())
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "24Gi", "nvidia.com/gpu": "2"}
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        {"key": "team", "operator": "Equal", "value": "ai"},
    ]
    assert pod["nodeSelector"] == {"gpu": "h100", "zone": "a"}
    assert (pod["runtimeClassName"], pod["priorityClassName"]) == ("nvidia", "batch")
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    names = [one["secretRef"]["name"] for one in container["envFrom"]]
    assert names == ["object-store", "wandb"]
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert manifest["spec"]["suspend"] is True


def test_several_nodes_meet_at_the_first_one() -> None:
    configured, job = settings(kubernetes_node_count=3), training_job()
    spec = job_manifest(configured, job)["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    pod = spec["template"]["spec"]
    environment = {one["name"]: one for one in pod["containers"][0]["env"]}
    service = service_manifest(configured, job, owner_uid="uid")
    assert pod["subdomain"] == service["metadata"]["name"]
    assert environment["MASTER_ADDR"]["value"] == f"{run_name(job)}-0.{pod['subdomain']}"
    port = service["spec"]["ports"][0]["port"]
    assert environment["MASTER_PORT"]["value"] == str(port)
    assert "job-completion-index" in str(environment["NODE_RANK"]["valueFrom"])
    secret = secret_manifest(configured, job, owner_uid="uid", ca=None)
    configuration = base64.b64decode(secret["data"]["configuration.yaml"])
    device = {"accelerator": "cpu", "process_count": 1, "node_count": 3}
    assert yaml.safe_load(configuration)["device"] == device


def test_building_a_manifest_changes_nothing() -> None:
    job = training_job()
    before = copy.deepcopy(dict(job.tree))
    list(_manifests(settings(**EVERYTHING)))
    assert job.tree == before
