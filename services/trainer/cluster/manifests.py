"""What a run is to the cluster: Job, Secret and, on several nodes, Service, as plain trees.

Pure functions of settings and job; equal arguments give equal manifests, on which the hash in the
Job's annotation rests. Sources: Kubernetes' pages on Jobs, Pod failure policy, Pod security
standards (restricted), and Kueue's on running Jobs.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import yaml

from services.trainer.cluster.settings import KubernetesSettings
from services.trainer.cluster.tokens import run_token
from services.trainer.job import TrainingJob
from services.trainer.run.violations import EXIT_REFUSED, EXIT_STOPPED

Manifest: TypeAlias = dict[str, Any]

CONTAINER = "run"
JOB_LABEL = "limner.dev/job"
ATTEMPT_LABEL = "limner.dev/attempt"
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
"""Of pods; set by the cluster."""
HASH_ANNOTATION = "limner.dev/spec-hash"
EXIT_KILLED = 137

_MANAGED_BY = {"app.kubernetes.io/name": "limner-run", "app.kubernetes.io/managed-by": "limner"}
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
_RENDEZVOUS_PORT = 29500
_SECRET_FOLDER = "/etc/limner/run"
_CONFIGURATION, _TOKEN, _CA = "configuration.yaml", "token", "ca.pem"


def run_name(job: TrainingJob) -> str:
    """Name of everything that belongs to an attempt: the same for the same attempt, and of no
    other."""
    digest = hashlib.blake2b(f"{job.account}\n{job.id}".encode(), digest_size=10)
    return f"db-{digest.hexdigest()}-{job.attempt}"


def selector(settings: KubernetesSettings) -> str:
    """Finds what belongs to this service."""
    return ",".join(f"{key}={value}" for key, value in _instance_labels(settings).items())


def job_selector(settings: KubernetesSettings, job_id: str) -> str:
    """Finds what belongs to one training job."""
    return f"{selector(settings)},{JOB_LABEL}={job_id}"


def run_configuration(settings: KubernetesSettings, job: TrainingJob) -> str:
    """The run's configuration file: the job's, and which devices it gets."""
    device = {
        "accelerator": "cuda" if settings.kubernetes_gpu_count else "cpu",
        "process_count": max(1, settings.kubernetes_gpu_count),
        "node_count": settings.kubernetes_node_count,
    }
    return yaml.safe_dump({**job.tree, "device": device}, sort_keys=False)


def job_manifest(settings: KubernetesSettings, job: TrainingJob) -> Manifest:
    """The Job, its annotation with the hash of itself and of the configuration included."""
    labels = _labels(settings, job)
    queue = settings.kubernetes_queue
    manifest: Manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": run_name(job),
            "namespace": settings.kubernetes_namespace,
            "labels": labels | ({_QUEUE_LABEL: queue} if queue else {}),
            "annotations": {"limner.dev/account": job.account},
        },
        "spec": {
            "backoffLimit": settings.kubernetes_retry_count,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": list(_failure_rules())},
            "activeDeadlineSeconds": settings.kubernetes_deadline_s,
            "ttlSecondsAfterFinished": settings.kubernetes_keep_s,
            **({"suspend": True} if queue else {}),
            **_several_nodes(settings),
            "template": {
                "metadata": {"labels": labels},
                "spec": _pod(settings, job),
            },
        },
    }
    manifest["metadata"]["annotations"][HASH_ANNOTATION] = _digest(
        [manifest, run_configuration(settings, job)]
    )
    return manifest


def secret_manifest(
    settings: KubernetesSettings, job: TrainingJob, *, owner_uid: str, ca: bytes | None
) -> Manifest:
    """Configuration and token of an attempt; goes with the Job."""
    key = settings.kubernetes_run_key
    assert key is not None, "checked with the settings"
    entries = {
        _CONFIGURATION: run_configuration(settings, job).encode(),
        _TOKEN: run_token(key.get_secret_value().encode(), job.id, job.attempt).encode(),
    }
    if ca is not None:
        entries[_CA] = ca
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "immutable": True,
        "metadata": _owned(settings, job, owner_uid),
        "data": {name: base64.b64encode(value).decode() for name, value in entries.items()},
    }


def service_manifest(settings: KubernetesSettings, job: TrainingJob, *, owner_uid: str) -> Manifest:
    """Gives the pods of a run on several nodes the names under which they meet."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _owned(settings, job, owner_uid),
        "spec": {
            "clusterIP": "None",
            # They meet before any of them is ready for anything.
            "publishNotReadyAddresses": True,
            "selector": {JOB_NAME_LABEL: run_name(job)},
            "ports": [{"name": "rendezvous", "port": _RENDEZVOUS_PORT, "protocol": "TCP"}],
        },
    }


def _failure_rules() -> Iterator[Manifest]:
    """What a pod's end means; the first rule that fits counts."""
    yield {"action": "FailJob", "onExitCodes": _exit_codes(EXIT_REFUSED)}
    yield {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    # Its neighbour on another node was disrupted, so that it stopped after the same step.
    yield {"action": "Ignore", "onExitCodes": _exit_codes(EXIT_STOPPED)}
    # Out of memory: an exact continuation would run out again at the same step.
    yield {"action": "FailJob", "onExitCodes": _exit_codes(EXIT_KILLED)}


def _exit_codes(code: int) -> Manifest:
    return {"containerName": CONTAINER, "operator": "In", "values": [code]}


def _several_nodes(settings: KubernetesSettings) -> Manifest:
    count = settings.kubernetes_node_count
    if count == 1:
        return {}
    return {"completionMode": "Indexed", "completions": count, "parallelism": count}


def _pod(settings: KubernetesSettings, job: TrainingJob) -> Manifest:
    user = settings.kubernetes_user_id
    spec: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": settings.kubernetes_grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(settings, job)],
        "volumes": list(_volumes(settings, job)),
    }
    optional = {
        "subdomain": run_name(job) if settings.kubernetes_node_count > 1 else None,
        "nodeSelector": settings.node_selector,
        "tolerations": [
            {
                "key": toleration.key,
                "operator": "Exists" if toleration.value is None else "Equal",
                **({} if toleration.value is None else {"value": toleration.value}),
                **({} if toleration.effect is None else {"effect": toleration.effect}),
            }
            for toleration in settings.tolerations
        ],
        "runtimeClassName": settings.kubernetes_runtime_class,
        "priorityClassName": settings.kubernetes_priority_class,
        "imagePullSecrets": [{"name": name} for name in settings.kubernetes_image_pull_secrets],
    }
    return spec | {key: value for key, value in optional.items() if value}


def _container(settings: KubernetesSettings, job: TrainingJob) -> Manifest:
    memory = {"memory": settings.kubernetes_memory}
    gpus = settings.kubernetes_gpu_count
    devices = {settings.kubernetes_gpu_resource: str(gpus)} if gpus else {}
    return {
        "name": CONTAINER,
        "image": settings.kubernetes_image,
        "command": ["python", "-m", "services.trainer.run", f"{_SECRET_FOLDER}/{_CONFIGURATION}"],
        "env": list(_environment(settings, job)),
        "envFrom": [
            {"secretRef": {"name": name}} for name in settings.kubernetes_environment_secrets
        ],
        "resources": {
            "requests": {"cpu": settings.kubernetes_cpu} | memory | devices,
            "limits": memory | devices,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": list(_mounts(settings)),
    }


def _environment(settings: KubernetesSettings, job: TrainingJob) -> Iterator[Manifest]:
    plain = {
        "HOME": "/tmp",
        "LIMNER_RUN_JOB": job.id,
        "LIMNER_RUN_ATTEMPT": str(job.attempt),
        "LIMNER_RUN_REPORTS_TARGET": str(settings.kubernetes_reports_target),
        "LIMNER_RUN_TOKEN_FILE": f"{_SECRET_FOLDER}/{_TOKEN}",
    }
    if settings.kubernetes_reports_ca is not None:
        plain["LIMNER_RUN_REPORTS_CA"] = f"{_SECRET_FOLDER}/{_CA}"
    if settings.kubernetes_node_count > 1:
        # The pod of index 0 keeps its name when it is replaced.
        plain["MASTER_ADDR"] = f"{run_name(job)}-0.{run_name(job)}"
        plain["MASTER_PORT"] = str(_RENDEZVOUS_PORT)
    yield from ({"name": name, "value": value} for name, value in plain.items())
    if settings.kubernetes_node_count > 1:
        field = {"fieldPath": f"metadata.annotations['{_INDEX_ANNOTATION}']"}
        yield {"name": "NODE_RANK", "valueFrom": {"fieldRef": field}}


def _volumes(settings: KubernetesSettings, job: TrainingJob) -> Iterator[Manifest]:
    # Readable by the group, which the pod's processes are in, and by nobody else.
    yield {"name": "run", "secret": {"secretName": run_name(job), "defaultMode": 0o440}}
    yield {"name": "scratch", "emptyDir": {"sizeLimit": settings.kubernetes_scratch}}
    # What processes of a node exchange; it counts as the pod's memory.
    yield {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
    for claim in sorted({claim.name for claim in settings.claims}):
        yield {"name": f"claim-{claim}", "persistentVolumeClaim": {"claimName": claim}}


def _mounts(settings: KubernetesSettings) -> Iterator[Manifest]:
    yield {"name": "run", "mountPath": _SECRET_FOLDER, "readOnly": True}
    yield {"name": "scratch", "mountPath": "/tmp"}
    yield {"name": "shared-memory", "mountPath": "/dev/shm"}
    for claim in settings.claims:
        mount = {"name": f"claim-{claim.name}", "mountPath": str(claim.path)}
        yield mount | ({"readOnly": True} if claim.is_read_only else {})


def _owned(settings: KubernetesSettings, job: TrainingJob, owner_uid: str) -> Manifest:
    """Metadata of what goes when the attempt's Job goes."""
    name = run_name(job)
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": owner_uid}
    return {
        "name": name,
        "namespace": settings.kubernetes_namespace,
        "labels": _labels(settings, job),
        "ownerReferences": [owner],
    }


def _instance_labels(settings: KubernetesSettings) -> dict[str, str]:
    return _MANAGED_BY | {"app.kubernetes.io/instance": settings.kubernetes_instance}


def _labels(settings: KubernetesSettings, job: TrainingJob) -> dict[str, str]:
    own = {JOB_LABEL: job.id, ATTEMPT_LABEL: str(job.attempt)}
    return _instance_labels(settings) | own


def _digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def spec_hash(manifest: Mapping[str, Any]) -> str:
    """The hash that a Job carries; empty where it is not one of ours."""
    annotations: Mapping[str, str] = manifest["metadata"].get("annotations") or {}
    return annotations.get(HASH_ANNOTATION, "")
