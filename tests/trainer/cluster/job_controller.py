"""A little Job controller, scheduler and kubelet for `ApiServer`; pods' commands are processes.

It creates pods, mounts Secrets as folders, resolves the environment, starts the command, applies
the Job's own podFailurePolicy to how it ended, and sets the conditions that Kubernetes sets. What
happens to pods on the way, tests decide: eviction, no memory, no node, no image, no time left.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.trainer.cluster.api_server import ApiServer, Change, Object, now

INDEX = "batch.kubernetes.io/job-completion-index"
_SECRETS = "/etc/limner/run"


class JobController:
    """Follows an `ApiServer`; `program` is what `python -m services.trainer.run` becomes."""

    def __init__(self, api: ApiServer, folder: Path, program: list[str]) -> None:
        self._api, self._folder, self._program = api, folder, program
        self._tasks: list[asyncio.Task[None]] = []
        self._pods: list[asyncio.Task[bool]] = []
        self._processes: dict[str, Process] = {}
        self._reasons: dict[str, str] = {}
        self._pod_count = 0
        self.unschedulable: str | None = None
        """Message of a scheduler that finds no node."""
        self.makes_no_pods = False
        """Whether a quota or a policy lets the controller make none."""
        self.image_error: str | None = None
        """Reason of a kubelet that gets no image."""
        self.rendezvous_port = 0
        self.exit_codes: list[int] = []
        """Of processes that ended, in order."""

    # What tests do.

    def evict(self, reason: str = "EvictionByEvictionAPI", *, index: int | None = None) -> None:
        """Have running pods leave, all or those of an index: SIGTERM, and time for a checkpoint."""
        assert self._processes, "no pod to evict"
        for name in list(self._processes):
            if index is not None and f"-{index}-" not in name:
                continue
            self._api.update("Pod", name, _disrupt(reason))
            self._stop_pod(name)

    def run_out_of_memory(self) -> None:
        """Have the kernel kill every running pod."""
        assert self._processes, "no pod to kill"
        for name, process in self._processes.items():
            self._reasons[name] = "OOMKilled"
            process.kill()

    def exceed_deadlines(self) -> None:
        """Let activeDeadlineSeconds pass for every Job."""
        for job in self._api.objects("Job"):
            assert job["spec"]["activeDeadlineSeconds"] > 0
            self._fail(job["metadata"]["name"], "DeadlineExceeded")

    def let_ttl_pass(self) -> None:
        """Remove what has ended, as the TTL controller does."""
        for job in self._api.objects("Job"):
            ended = {one["type"] for one in job.get("status", {}).get("conditions", ())}
            if ended & {"Complete", "Failed"} and job["spec"]["ttlSecondsAfterFinished"] > 0:
                self._api.remove("Job", job["metadata"]["name"])

    def unsuspend(self) -> None:
        """Admit every Job, as Kueue does."""
        for job in self._api.objects("Job"):
            name = job["metadata"]["name"]
            self._api.update("Job", name, lambda body: body["spec"].update(suspend=False))

    @property
    def running_count(self) -> int:
        return len(self._processes)

    # Jobs.

    @asynccontextmanager
    async def controlling(self) -> AsyncIterator[None]:
        self._api.listeners.append(self._on_change)
        try:
            yield
        finally:
            self._api.listeners.remove(self._on_change)
            await _cancelled(self._tasks)
            for process in list(self._processes.values()):
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            await _cancelled(self._pods)

    def _on_change(self, change: Change) -> None:
        if change.object["kind"] == "Job" and change.type == "ADDED":
            name = change.object["metadata"]["name"]
            self._tasks.append(asyncio.create_task(self._control(name)))

    async def _control(self, name: str) -> None:
        """Keep a Job's pods up until it has ended, and remove it when it is to go."""
        indexes: dict[int, asyncio.Task[bool]] = {}
        failure_count = 0
        while (job := self._api.find("Job", name)) is not None:
            if "deletionTimestamp" in job["metadata"]:
                return await self._remove(name, indexes)
            if _has_ended(job):
                await self._end_pods(name, indexes)
                await asyncio.sleep(0.02)
                continue
            if not job["spec"].get("suspend") and not self.makes_no_pods:
                for index in range(job["spec"].get("completions", 1)):
                    if index not in indexes:
                        indexes[index] = asyncio.create_task(self._run_pod(job, index))
                        self._pods.append(indexes[index])
            for index, task in list(indexes.items()):
                if not task.done() or task.exception() is None:
                    continue
                verdict = task.exception()
                if not isinstance(verdict, PodFailedError):
                    raise AssertionError("the kubelet failed") from verdict
                del indexes[index]  # podReplacementPolicy Failed: its successor comes now
                if verdict.action == "FailJob":
                    self._fail(name, "PodFailurePolicy")
                elif verdict.action == "Count":
                    failure_count += 1
                    if failure_count > job["spec"]["backoffLimit"]:
                        self._fail(name, "BackoffLimitExceeded")
            if len(indexes) == job["spec"].get("completions", 1) and all(
                task.done() and task.exception() is None for task in indexes.values()
            ):
                self._finish(name, "Complete", "CompletionsReached")
            await asyncio.sleep(0.02)
        await self._end_pods(name, indexes)

    async def _remove(self, name: str, indexes: dict[int, asyncio.Task[bool]]) -> None:
        """Foreground deletion: the pods first."""
        await self._end_pods(name, indexes)
        self._api.remove("Job", name)

    async def _end_pods(self, name: str, indexes: dict[int, asyncio.Task[bool]]) -> None:
        """SIGTERM to those that run; those that wait for something just go."""
        running = [pod for pod in self._processes if pod.startswith(f"{name}-")]
        for pod in running:
            self._stop_pod(pod)
        if not running:
            for task in indexes.values():
                task.cancel()
        await asyncio.gather(*indexes.values(), return_exceptions=True)
        for pod in self._api.objects("Pod"):
            meta = pod["metadata"]
            if meta["name"].startswith(f"{name}-") and pod["status"]["phase"] == "Pending":
                self._api.remove("Pod", meta["name"])

    def _fail(self, name: str, reason: str) -> None:
        self._finish(name, "Failed", reason)

    def _finish(self, name: str, condition: str, reason: str) -> None:
        def change(job: Object) -> None:
            listed = job.setdefault("status", {}).setdefault("conditions", [])
            listed.append(
                {"type": condition, "status": "True", "reason": reason, "lastTransitionTime": now()}
            )

        self._api.update("Job", name, change)

    # Pods.

    async def _run_pod(self, job: Object, index: int) -> bool:
        """Run a pod to success; raises `PodFailedError`."""
        name = self._create_pod(job, index)
        await self._schedule(name)
        folder = await self._mount(job, name)
        process = await self._start(job, index, name, folder)
        self._processes[name] = process
        self._api.update("Pod", name, lambda pod: pod["status"].update(phase="Running"))
        exit_code = await process.wait()
        del self._processes[name]
        exit_code = 128 - exit_code if exit_code < 0 else exit_code
        self.exit_codes.append(exit_code)
        pod = self._api.update("Pod", name, _terminate(exit_code, self._reasons.get(name)))
        if exit_code == 0:
            return True
        if pod is None:  # removed with its Job
            raise PodFailedError("Ignore")
        action = _action(job["spec"]["podFailurePolicy"]["rules"], pod, exit_code)
        if "deletionTimestamp" in pod["metadata"]:
            self._api.remove("Pod", name)
        raise PodFailedError(action)

    def _create_pod(self, job: Object, index: int) -> str:
        self._pod_count += 1
        meta, template = job["metadata"], job["spec"]["template"]
        name = f"{meta['name']}-{index}-{self._pod_count:05x}"
        owner = {"kind": "Job", "name": meta["name"], "uid": meta["uid"], "apiVersion": "batch/v1"}
        labels = template["metadata"]["labels"] | {"batch.kubernetes.io/job-name": meta["name"]}
        self._api.add(
            "Pod",
            {
                "metadata": {
                    "name": name,
                    "labels": labels,
                    "annotations": {INDEX: str(index)},
                    "ownerReferences": [owner],
                },
                "spec": template["spec"],
                "status": {"phase": "Pending", "conditions": []},
            },
        )
        return name

    async def _schedule(self, name: str) -> None:
        """Find a node and an image, or wait for them."""
        while self.unschedulable is not None:
            self._api.update("Pod", name, _scheduled(False, self.unschedulable))
            await asyncio.sleep(0.1)
        self._api.update("Pod", name, _scheduled(True, ""))
        while self.image_error is not None:
            self._api.update("Pod", name, _image_missing(self.image_error))
            await asyncio.sleep(0.1)

    async def _mount(self, job: Object, name: str) -> Path:
        """The Secret's folder, as soon as there is such a Secret."""
        volumes = job["spec"]["template"]["spec"]["volumes"]
        secret_name = next(v["secret"]["secretName"] for v in volumes if "secret" in v)
        while (secret := self._api.find("Secret", secret_name)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        folder = self._folder / name
        folder.mkdir(parents=True)
        for entry, value in secret["data"].items():
            (folder / entry).write_bytes(base64.b64decode(value))
        return folder

    async def _start(self, job: Object, index: int, name: str, folder: Path) -> Process:
        container = job["spec"]["template"]["spec"]["containers"][0]
        assert container["command"][:3] == ["python", "-m", "services.trainer.run"]
        arguments = [part.replace(_SECRETS, str(folder)) for part in container["command"][3:]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for entry in container["env"]:
            value = entry.get("value", str(index))
            environment[entry["name"]] = value.replace(_SECRETS, str(folder))
        if "MASTER_ADDR" in environment:
            # No name service here.
            environment["MASTER_ADDR"] = "127.0.0.1"
            environment["MASTER_PORT"] = str(self.rendezvous_port)
        with (folder / "log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *self._program, *arguments, env=environment, stdout=log, stderr=log
            )

    def _stop_pod(self, name: str) -> None:
        self._api.update("Pod", name, lambda pod: pod["metadata"].update(deletionTimestamp=now()))
        with contextlib.suppress(ProcessLookupError):
            self._processes[name].send_signal(signal.SIGTERM)


class PodFailedError(Exception):
    """A pod ended badly; `action` is what the Job's policy makes of it."""

    def __init__(self, action: str) -> None:
        super().__init__(action)
        self.action = action


REAL_RUN = [sys.executable, "-m", "services.trainer.run"]


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _has_ended(job: Object) -> bool:
    listed = job.get("status", {}).get("conditions", ())
    return any(one["type"] in ("Complete", "Failed") for one in listed)


def _disrupt(reason: str) -> Callable[[Object], None]:
    def change(pod: Object) -> None:
        pod["status"]["conditions"].append(
            {"type": "DisruptionTarget", "status": "True", "reason": reason}
        )

    return change


def _terminate(exit_code: int, reason: str | None) -> Callable[[Object], None]:
    def change(pod: Object) -> None:
        told = reason or ("Error" if exit_code else "Completed")
        ended = {"exitCode": exit_code, "reason": told, "finishedAt": now()}
        pod["status"]["phase"] = "Failed" if exit_code else "Succeeded"
        pod["status"]["containerStatuses"] = [{"name": "run", "state": {"terminated": ended}}]

    return change


def _scheduled(found: bool, message: str) -> Callable[[Object], None]:
    def change(pod: Object) -> None:
        condition = {"type": "PodScheduled", "status": str(found), "lastTransitionTime": now()}
        if not found:
            condition |= {"reason": "Unschedulable", "message": message}
        known = pod["status"]["conditions"]
        if known and known[0]["status"] == condition["status"]:
            condition["lastTransitionTime"] = known[0]["lastTransitionTime"]
        pod["status"]["conditions"] = [condition]

    return change


def _image_missing(reason: str) -> Callable[[Object], None]:
    def change(pod: Object) -> None:
        waiting = {"name": "run", "state": {"waiting": {"reason": reason, "message": "no image"}}}
        pod["status"]["containerStatuses"] = [waiting]

    return change


def _action(rules: list[Object], pod: Object, exit_code: int) -> str:
    """What the first rule that fits says; "Pod failure policy" of Kubernetes."""
    return next(_fitting(rules, pod, exit_code), "Count")


def _fitting(rules: list[Object], pod: Object, exit_code: int) -> Iterator[str]:
    holding = {one["type"] for one in pod["status"]["conditions"] if one["status"] == "True"}
    for rule in rules:
        codes = rule.get("onExitCodes")
        if codes is not None and codes["operator"] == "In" and exit_code in codes["values"]:
            yield rule["action"]
        if any(one["type"] in holding for one in rule.get("onPodConditions", ())):
            yield rule["action"]
