"""The cluster's API, as far as runs need it; the only module that imports `kubernetes`.

Objects go in and come out as plain trees. Nothing is tried again here: who calls knows what can
wait. Errors:

    ClusterError
    ├── ClusterAwayError       no answer, 401, 429 or 5xx: trying again may help
    ├── AlreadyThereError      409: the name is taken, or the object is another one by now
    ├── VersionGoneError       410: the watch's version is too old, list again
    └── ClusterRefusedError    any other refusal: a right is missing, a quota, a policy, a mistake
                               (404, where it is no answer, is one of them)
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import aiohttp
from kubernetes.aio import client
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import load_kube_config

from services.trainer.cluster.manifests import Manifest

Kind = Literal["Job", "Pod"]
_Call: TypeAlias = "Callable[..., Awaitable[Any]]"

_TIMEOUT_S = 30.0
_WATCH_SLACK_S = 30.0
_UNAUTHORIZED, _NOT_FOUND, _CONFLICT, _GONE, _TOO_MANY = 401, 404, 409, 410, 429
_MAX_MESSAGE, _MAX_TOLD = 500, 50


class ClusterError(Exception):
    """The cluster did not do what it was asked to do."""


class ClusterAwayError(ClusterError):
    """It may do so later; `retry_after_s` is its own wish."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AlreadyThereError(ClusterError):
    """The name is taken, or a precondition does not hold."""


class VersionGoneError(ClusterError):
    """What happened since this version is forgotten."""


class ClusterRefusedError(ClusterError):
    """It will not do so."""


class _NotFoundError(ClusterRefusedError):
    """There is no such object, or no such namespace."""


class ClusterApi:
    """Jobs, their pods and what goes with them, in one namespace."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._batch, self._core = client.BatchV1Api(api), client.CoreV1Api(api)
        self._namespace = namespace

    async def create(self, manifest: Manifest) -> Manifest:
        """Create a Job, Secret or Service and return it as the cluster has it."""
        calls: Mapping[str, _Call] = {
            "Job": self._batch.create_namespaced_job_without_preload_content,
            "Secret": self._core.create_namespaced_secret_without_preload_content,
            "Service": self._core.create_namespaced_service_without_preload_content,
        }
        call = calls[manifest["kind"]]
        # Strict: a field that the cluster does not know is refused, not dropped in silence.
        return await _answer(
            call(self._namespace, manifest, field_validation="Strict", **_limits())
        )

    async def find_job(self, name: str) -> Manifest | None:
        """A Job as it is now; None: there is none."""
        call: _Call = self._batch.read_namespaced_job_without_preload_content
        return await _found(call(name, self._namespace, **_limits()))

    async def delete_job(self, name: str, *, uid: str) -> None:
        """Ask for the end of the Job that has this uid, and of its pods before it is gone.

        A no-op where it is gone. Raises `AlreadyThereError` where the name has another Job by now.
        """
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        call: _Call = self._batch.delete_namespaced_job_without_preload_content
        await _found(call(name, self._namespace, body=options, **_limits()))

    async def list_objects(self, kind: Kind, selector: str) -> tuple[list[Manifest], str]:
        """All objects of a kind under a selector, and the version from which to watch."""
        call = self._lister(kind)(self._namespace, label_selector=selector, **_limits())
        found = await _answer(call)
        return list(found["items"]), found["metadata"]["resourceVersion"]

    async def watch(
        self, kind: Kind, selector: str, *, version: str, timeout_s: int
    ) -> AsyncGenerator[Manifest, None]:
        """Changes since `version`, as {type, object}, bookmarks included; ends with the timeout,
        or whenever the cluster likes. Raises `VersionGoneError` and the others."""
        response = await _opened(
            self._lister(kind)(
                self._namespace,
                label_selector=selector,
                watch=True,
                allow_watch_bookmarks=True,
                resource_version=version,
                timeout_seconds=timeout_s,
                # Of a connection that died without a word.
                _request_timeout=timeout_s + _WATCH_SLACK_S,
            )
        )
        try:
            while line := await _away_if_broken(response.content.readline()):
                event = _parsed(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise _error(status.get("code", 0), status.get("message", ""))
                yield event
        finally:
            response.close()

    def _lister(self, kind: Kind) -> _Call:
        if kind == "Job":
            return self._batch.list_namespaced_job_without_preload_content
        return self._core.list_namespaced_pod_without_preload_content


@asynccontextmanager
async def open_api(namespace: str, kubeconfig: Path | None) -> AsyncIterator[ClusterApi]:
    """Connect by a kubeconfig file, or as the pod that this process runs in.

    Raises OSError where neither is to be had.
    """
    configuration = client.Configuration()
    try:
        if kubeconfig is None:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await load_kube_config(  # type: ignore[no-untyped-call]
                str(kubeconfig), client_configuration=configuration
            )
    except ConfigException as error:
        raise OSError(f"cannot reach Kubernetes: {error}") from error
    async with client.ApiClient(configuration) as api:
        yield ClusterApi(api, namespace)


def _limits() -> dict[str, float]:
    return {"_request_timeout": _TIMEOUT_S}


async def _answer(call: Awaitable[Any]) -> Manifest:
    response = await _opened(call)
    try:
        return _parsed(await _away_if_broken(response.read()))
    finally:
        response.release()


async def _found(call: Awaitable[Any]) -> Manifest | None:
    try:
        return await _answer(call)
    except _NotFoundError:
        return None


async def _opened(call: Awaitable[Any]) -> aiohttp.ClientResponse:
    """The response of a call that succeeded."""
    response: aiohttp.ClientResponse = await _away_if_broken(call)
    if response.status < 400:
        return response
    body = await _away_if_broken(response.text())
    response.release()
    raise _error(response.status, _message(body), response.headers.get("Retry-After", ""))


async def _away_if_broken(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise ClusterAwayError(str(error) or type(error).__name__) from error


def _parsed(body: bytes) -> Manifest:
    """What a proxy cut off, or said itself, is no answer of the cluster."""
    try:
        answer: Manifest = json.loads(body)
    except ValueError as error:
        raise ClusterAwayError(f"no JSON: {body[:_MAX_TOLD]!r}") from error
    return answer


def _error(status: int, message: str, retry_after: str = "") -> ClusterError:
    told = f"{status}: {message[:_MAX_MESSAGE]}"
    if status == _NOT_FOUND:
        return _NotFoundError(told)
    if status == _CONFLICT:
        return AlreadyThereError(told)
    if status == _GONE:
        return VersionGoneError(told)
    # 401 between two tokens: the client reads the service account's anew every minute.
    if status in (_UNAUTHORIZED, _TOO_MANY) or status >= 500:
        wish = float(retry_after) if retry_after.isdigit() else None
        return ClusterAwayError(told, retry_after_s=wish)
    return ClusterRefusedError(told)


def _message(body: str) -> str:
    """The message of a Status, or whatever a proxy on the way said instead."""
    try:
        status = json.loads(body)
    except ValueError:
        return body
    return str(status.get("message", body)) if isinstance(status, dict) else body
