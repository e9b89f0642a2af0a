"""An API server of Kubernetes for tests: real HTTP, real resourceVersions, and faults on demand.

It keeps Jobs, Pods, Secrets and Services of one namespace with uid, resourceVersion and timestamps,
checks what is created against the strict schemas, answers list, watch (with bookmarks, timeouts,
410), create (409), read (404) and delete (uid precondition, propagation). What lives in it is
changed by `JobController`.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

import kubernetes_validate
import yaml
from aiohttp import web

Object: TypeAlias = dict[str, Any]

NAMESPACE = "limner-runs"
SCHEMA_VERSION = "1.37"
_KINDS = {"jobs": "Job", "pods": "Pod", "secrets": "Secret", "services": "Service"}
_API_VERSIONS = {"Job": "batch/v1", "Pod": "v1", "Secret": "v1", "Service": "v1"}
_BOOKMARK_S = 0.3


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    version: int
    type: str
    object: Object


@dataclass(kw_only=True, slots=True)
class Faults:
    """What goes wrong; tests set it."""

    refuse_all: tuple[int, str] | None = None
    """Status and reason for every request."""
    refuse_create: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By kind."""
    gone_as_status: bool = False
    """410 as the status of the response, not as an event."""
    no_bookmarks: bool = False
    silent: set[str] = field(default_factory=set)
    """Kinds whose watches tell nothing."""
    cut_off: bool = False
    """The next event of a watch ends in the middle, and the response as if it were whole."""


class ApiServer:
    """Objects by kind and name, the log of their changes, and the HTTP face of both."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.url = ""
        self._objects: dict[tuple[str, str], Object] = {}
        self._log: list[Change] = []
        self._versions = itertools.count(100)
        self._version = next(self._versions)
        self._forgotten_before = 0
        self._changed: set[asyncio.Event] = set()
        self._watches: set[asyncio.Task[Any]] = set()
        self.listeners: list[Callable[[Change], None]] = []

    # What tests and the controller do.

    def objects(self, kind: str) -> list[Object]:
        return [copy.deepcopy(one) for (k, _), one in self._objects.items() if k == kind]

    def find(self, kind: str, name: str) -> Object | None:
        return copy.deepcopy(self._objects.get((kind, name)))

    def add(self, kind: str, body: Object) -> Object:
        created = {"apiVersion": _API_VERSIONS[kind], "kind": kind} | copy.deepcopy(body)
        meta = {"uid": str(uuid.uuid4()), "creationTimestamp": now(), "namespace": NAMESPACE}
        created["metadata"] = meta | created["metadata"]
        return self._put(kind, created, "ADDED")

    def update(self, kind: str, name: str, change: Callable[[Object], None]) -> Object | None:
        """Change an object in place; a no-op where it is gone."""
        found = self.find(kind, name)
        if found is None:
            return None
        change(found)
        return self._put(kind, found, "MODIFIED")

    def remove(self, kind: str, name: str) -> None:
        """Remove an object and, in the end, what it owns."""
        found = self._objects.pop((kind, name), None)
        if found is None:
            return
        self._record("DELETED", found)
        for other_kind, other_name in list(self._objects):
            other = self._objects.get((other_kind, other_name))
            owners = (other or {"metadata": {}})["metadata"].get("ownerReferences", ())
            if any(owner["uid"] == found["metadata"]["uid"] for owner in owners):
                self.remove(other_kind, other_name)

    def drop_watches(self) -> int:
        """Cut every watch in the middle; how many there were."""
        watches = list(self._watches)
        for watch in watches:
            watch.cancel()
        return len(watches)

    def forget_history(self) -> None:
        """Compact: what is not in the newest version cannot be watched from any more."""
        self._version = next(self._versions)
        self._forgotten_before = self._version
        self._log.clear()

    def kubeconfig(self) -> str:
        named = {"name": "test"}
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [named | {"cluster": {"server": self.url}}],
                "users": [named | {"user": {"token": "of-the-service"}}],
                "contexts": [named | {"context": {"cluster": "test", "user": "test"}}],
            }
        )

    def _put(self, kind: str, body: Object, change: str) -> Object:
        self._objects[kind, body["metadata"]["name"]] = body
        self._record(change, body)
        return copy.deepcopy(body)

    def _record(self, change: str, body: Object) -> None:
        self._version = next(self._versions)
        body["metadata"]["resourceVersion"] = str(self._version)
        one = Change(version=self._version, type=change, object=copy.deepcopy(body))
        self._log.append(one)
        for event in self._changed:
            event.set()
        for listener in self.listeners:
            listener(one)

    # What clients see.

    async def handle(self, request: web.Request) -> web.StreamResponse:
        kind = _KINDS[request.match_info["resource"]]
        name = request.match_info.get("name", "")
        self.requests.append((request.method, request.path, dict(request.query)))
        if request.headers.get("Authorization") != "Bearer of-the-service":
            return _status(401, "Unauthorized")
        if request.match_info["namespace"] != NAMESPACE:
            return _status(404, "namespace not found")
        if self.faults.refuse_all is not None:
            return _status(*self.faults.refuse_all)
        if request.method == "POST":
            return self._create(kind, await request.json())
        if request.method == "DELETE":
            body = await request.json() if request.can_read_body else {}
            return self._delete(kind, name, body)
        if name:
            found = self.find(kind, name)
            return _status(404, f"{name} not found") if found is None else web.json_response(found)
        if request.query.get("watch") == "true":
            return await self._watch(kind, request)
        return self._list(kind, request)

    def _create(self, kind: str, body: Object) -> web.Response:
        if kind in self.faults.refuse_create:
            return _status(*self.faults.refuse_create[kind])
        kubernetes_validate.validate(body, SCHEMA_VERSION, strict=True)
        if (kind, body["metadata"]["name"]) in self._objects:
            return _status(409, "AlreadyExists")
        return web.json_response(self.add(kind, body), status=201)

    def _delete(self, kind: str, name: str, options: Object) -> web.Response:
        found = self.find(kind, name)
        if found is None:
            return _status(404, f"{name} not found")
        uid = options.get("preconditions", {}).get("uid")
        if uid is not None and uid != found["metadata"]["uid"]:
            return _status(409, "the UID in the precondition does not match")
        if options["propagationPolicy"] == "Foreground":

            def mark(body: Object) -> None:
                body["metadata"]["deletionTimestamp"] = now()
                body["metadata"]["finalizers"] = ["foregroundDeletion"]

            found = self.update(kind, name, mark)
        else:
            self.remove(kind, name)
        return web.json_response(found)

    def _list(self, kind: str, request: web.Request) -> web.Response:
        selector = request.query.get("labelSelector", "")
        items = [one for one in self.objects(kind) if _matches(one, selector)]
        for one in items:  # lists leave it out
            del one["kind"], one["apiVersion"]
        metadata = {"resourceVersion": str(self._version)}
        return web.json_response({"kind": f"{kind}List", "metadata": metadata, "items": items})

    async def _watch(self, kind: str, request: web.Request) -> web.StreamResponse:
        version = int(request.query["resourceVersion"])
        if version < self._forgotten_before and self.faults.gone_as_status:
            return _status(410, "too old resource version")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        task = asyncio.create_task(self._stream(kind, request, response, version))
        self._watches.add(task)
        try:
            await asyncio.wait([task], timeout=float(request.query["timeoutSeconds"]))
            if task.cancelled() and request.transport is not None:
                request.transport.abort()  # dropped: no end of the response either
        finally:
            self._watches.discard(task)
            task.cancel()
        return response

    async def _stream(
        self, kind: str, request: web.Request, response: web.StreamResponse, version: int
    ) -> None:
        if version < self._forgotten_before:
            gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
            await _send(response, "ERROR", gone)
            return
        selector = request.query.get("labelSelector", "")
        changed = asyncio.Event()
        self._changed.add(changed)
        try:
            while True:
                changed.clear()
                while kind in self.faults.silent:  # noqa: ASYNC110
                    await asyncio.sleep(_BOOKMARK_S)
                for change in list(self._changes(kind, selector, version)):
                    if self.faults.cut_off:
                        self.faults.cut_off = False
                        await response.write(b'{"type": "MODIFIED", "object": {"metad')
                        return
                    await _send(response, change.type, change.object)
                version = self._version
                try:
                    async with asyncio.timeout(_BOOKMARK_S):
                        await changed.wait()
                except TimeoutError:
                    if not self.faults.no_bookmarks:
                        await _send(response, "BOOKMARK", _bookmark(kind, version))
        finally:
            self._changed.discard(changed)

    def _changes(self, kind: str, selector: str, after: int) -> Iterator[Change]:
        for change in self._log:
            fits = change.object["kind"] == kind and _matches(change.object, selector)
            if change.version > after and fits:
                yield change


@asynccontextmanager
async def serving_api() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    application = web.Application()
    for prefix in ("/apis/batch/v1", "/api/v1"):
        base = f"{prefix}/namespaces/{{namespace}}/{{resource}}"
        application.router.add_route("*", base, server.handle)
        application.router.add_route("*", f"{base}/{{name}}", server.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        server.drop_watches()
        await runner.cleanup()


def _matches(body: Object, selector: str) -> bool:
    labels = body["metadata"].get("labels", {})
    pairs = (term.split("=") for term in selector.split(",") if term)
    return all(labels.get(key) == value for key, value in pairs)


def _bookmark(kind: str, version: int) -> Object:
    return {"kind": kind, "metadata": {"resourceVersion": str(version)}}


async def _send(response: web.StreamResponse, change: str, body: Object) -> None:
    await response.write(json.dumps({"type": change, "object": body}).encode() + b"\n")


def _status(code: int, message: str) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "code": code, "message": message}
    headers = {"Retry-After": "1"} if code == 429 else {}
    return web.json_response(body, status=code, headers=headers)
