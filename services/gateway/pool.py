"""The backends and the choice among them: by model, then by load.

Called by the servicers. A backend is chosen when it serves the model and has the fewest streams in
flight from this gateway; equals take turns. Addresses come from the settings: `host:port`, or
`dns:///host:port`, which stands for every address that the name resolves to, now and later.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from limner.v1 import model_pb2
from services.gateway.backend import Backend, LinkOptions, ServedModel
from services.runtime.context import RequestContext
from services.runtime.errors import (
    FieldViolation,
    InvalidRequestError,
    ModelNotFoundError,
    UnavailableError,
)
from services.runtime.settings import Address
from services.storage.catalog import base_name

DNS_SCHEME = "dns:///"
_RESOLVE_INTERVAL_S = 10.0

Resolve: TypeAlias = Callable[[str], Awaitable[set[str]]]
"""From `host:port` to the addresses behind it."""

_log = logging.getLogger(__name__)


class BackendPool:
    """All backends of a gateway. `run` keeps it up to date until cancelled.

    `on_change` is called whenever `serving` may have changed.
    """

    def __init__(
        self,
        targets: Sequence[str],
        *,
        default_model: str = "",
        options: LinkOptions | None = None,
        on_change: Callable[[], None] = lambda: None,
        resolve: Resolve | None = None,
        resolve_interval_s: float = _RESOLVE_INTERVAL_S,
    ) -> None:
        self._targets = targets
        self._default_model = default_model
        self._options = options or LinkOptions()
        self._on_change = on_change
        self._resolve = resolve or resolve_name
        self._resolve_interval_s = resolve_interval_s
        self._backends: dict[str, Backend] = {}
        self._models: dict[frozenset[int], Mapping[str, ServedModel]] = {}
        self._turn = 0
        self._conflicts: frozenset[str] = frozenset()

    @property
    def backends(self) -> Collection[Backend]:
        """The backends that new requests may go to."""
        return self._backends.values()

    @property
    def serving(self) -> bool:
        """Whether any backend serves."""
        return any(backend.serving for backend in self.backends)

    def serves(self, tasks: Collection[int]) -> bool:
        """Whether any backend that serves has a model for one of `tasks`."""
        return any(
            not model.tasks.isdisjoint(tasks)
            for backend in self.backends
            if backend.serving
            for model in backend.models.values()
        )

    async def run(self) -> None:
        """Follows all backends until cancelled, then closes them."""
        async with asyncio.TaskGroup() as group:
            for target in self._targets:
                if target.startswith(DNS_SCHEME):
                    name = target.removeprefix(DNS_SCHEME)
                    group.create_task(self._follow_name(name))
                else:
                    group.create_task(self._follow_backend(target, asyncio.Event()))

    def find_model(self, name: str, tasks: frozenset[int]) -> ServedModel:
        """The model for one of `tasks` that a request means, as one of its backends lists it.

        A trained model, `base@name`, is as its base: whether it exists, and for whom, its backend
        says. An empty name is the default model, where it does any of `tasks`, or the only one that
        does, or the only one that its backend calls its default.
        Raises ModelNotFoundError naming what exists, InvalidRequestError when a name is needed,
        UnavailableError (NOT_READY) when no backend has ever told of such a model.
        """
        models = self._models_for(tasks)
        if name in models:
            return models[name]
        if not models:
            raise UnavailableError("no backend has been reached yet", reason="NOT_READY")
        if not name and (self._default_model in models or not self._default_does_another_task()):
            name = self._default_model
        if not name:
            return _default_of(models)
        base = base_name(name)
        if base not in models:
            raise ModelNotFoundError(name, sorted(models))
        return models[name] if name == base else replace(models[base], name=name)

    def choose(self, model: str, *, excluded: Collection[Backend] = ()) -> Backend:
        """The least busy backend that serves `model`. Raises UnavailableError (NO_BACKEND)."""
        backends, base = list(self.backends), base_name(model)
        self._turn += 1
        candidates = [
            (backend.in_flight, (index - self._turn) % len(backends), backend)
            for index, backend in enumerate(backends)
            if backend.serving and base in backend.models and backend not in excluded
        ]
        if not candidates:
            message = f"no backend serves the model {model!r} now"
            raise UnavailableError(message, reason="NO_BACKEND")
        return min(candidates, key=lambda candidate: candidate[:2])[2]

    def list_models(self) -> Sequence[ServedModel]:
        """What the serving backends have between them, sorted by name.

        Where backends differ in a model's revision, as during a roll-out, the one that most of them
        have is listed, of equals the first backend's. Raises UnavailableError (NOT_READY,
        NO_BACKEND) when no backend serves.
        """
        serving = [backend for backend in self.backends if backend.serving]
        if not serving:
            is_known = any(backend.models for backend in self.backends)
            raise UnavailableError(reason="NO_BACKEND" if is_known else "NOT_READY")
        offers = _offers(serving)
        return [_prevailing(offers[name]) for name in sorted(offers)]

    async def list_trained(self, request: RequestContext) -> Sequence[model_pb2.Model]:
        """The models that the caller's account has trained, sorted by name.

        All backends read one catalogue and each serves what was trained from its own models. What
        a backend cannot tell now is left out.
        """
        asked = [each for each in self.backends if each.serving and each.draws]
        answers = await asyncio.gather(*(each.list_trained(request) for each in asked))
        found = {model.name: model for models in answers for model in models}
        return [found[name] for name in sorted(found)]

    def _models_for(self, tasks: frozenset[int]) -> Mapping[str, ServedModel]:
        """By name; kept until a backend changes."""
        models = self._models.get(tasks)
        if models is None:
            models = self._models[tasks] = {
                model.name: model
                for backend in self.backends
                for model in backend.models.values()
                if not model.tasks.isdisjoint(tasks)
            }
        return models

    def _default_does_another_task(self) -> bool:
        return any(self._default_model in backend.models for backend in self.backends)

    async def _follow_backend(
        self, address: str, gone: asyncio.Event, host: str | None = None
    ) -> None:
        """Follows a backend until it is `gone`, then lets its last streams end.

        `host` is the name that `address` was found under.
        """
        backend = Backend(address, self._options, host=host, on_change=self._backend_changed)
        self._backends[address] = backend
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(backend.watch())
                await gone.wait()
                watching.cancel()
                self._forget(backend)
                await backend.wait_until_idle()
        finally:
            self._forget(backend)
            await backend.close()

    async def _follow_name(self, name: str) -> None:
        """Follows a backend at each address of `name`, now and later."""
        host = Address(name).host
        followed: dict[str, asyncio.Event] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                addresses = await self._resolve(name)
                for address in addresses - followed.keys():
                    followed[address] = asyncio.Event()
                    group.create_task(self._follow_backend(address, followed[address], host))
                if addresses:  # an empty answer says more of the name server than of the backends
                    for address in followed.keys() - addresses:
                        followed.pop(address).set()
                await asyncio.sleep(self._resolve_interval_s)

    def _forget(self, backend: Backend) -> None:
        """Sends no more requests to `backend`; its address may have a successor already."""
        if self._backends.get(backend.address) is backend:
            del self._backends[backend.address]
            self._backend_changed()

    def _backend_changed(self) -> None:
        self._models.clear()
        offers = _offers(backend for backend in self.backends if backend.serving)
        conflicts = frozenset(
            name for name, offered in offers.items() if len({m.revision for m in offered}) > 1
        )
        for name in sorted(conflicts - self._conflicts):
            revisions = sorted({model.revision for model in offers[name]})
            _log.warning(
                "backends differ in a model's revision",
                extra={"model": name, "revisions": revisions},
            )
        self._conflicts = conflicts
        self._on_change()


def _default_of(models: Mapping[str, ServedModel]) -> ServedModel:
    """The only one, or the only one that its backend calls its default."""
    defaults = [model for model in models.values() if model.listing.is_default or len(models) == 1]
    if len(defaults) == 1:
        return defaults[0]
    text = f"several models exist, name one of: {', '.join(sorted(models))}"
    raise InvalidRequestError([FieldViolation(field="model", reason="REQUIRED", description=text)])


def _offers(backends: Iterable[Backend]) -> Mapping[str, Sequence[ServedModel]]:
    offers: dict[str, list[ServedModel]] = {}
    for backend in backends:
        for name, model in backend.models.items():
            offers.setdefault(name, []).append(model)
    return offers


def _prevailing(offered: Sequence[ServedModel]) -> ServedModel:
    counts = Counter(model.revision for model in offered)
    return max(offered, key=lambda model: counts[model.revision])


async def resolve_name(name: str) -> set[str]:
    """The addresses behind `host:port`; empty when the name cannot be resolved now."""
    host, _, port = name.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )
    except socket.gaierror as error:
        _log.warning("name not resolved", extra={"target": name, "reason": str(error)})
        return set()
    hosts = {str(address[0]) for _, _, _, _, address in found}
    return {f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts}
