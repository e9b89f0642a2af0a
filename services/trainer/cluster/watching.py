"""What the cluster has of a kind of objects, kept up to date in this process.

List, watch from that version, start again where a connection ends or a version is forgotten; every
few minutes list again whatever the watch said. Made by the backend for Jobs and for pods.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import aclosing

from services.trainer.cluster.api import (
    ClusterApi,
    ClusterAwayError,
    ClusterRefusedError,
    Kind,
    VersionGoneError,
)
from services.trainer.cluster.backoff import Backoff
from services.trainer.cluster.manifests import Manifest

_LOGGER = logging.getLogger(__name__)
_LEAST_PAUSE_S = 0.1


class Watched:
    """The objects of one kind under a selector, by name.

    `changed` is called with an object that came, changed or went; it must not fail and not block.
    """

    def __init__(
        self,
        api: ClusterApi,
        kind: Kind,
        selector: str,
        *,
        resync_s: float,
        changed: Callable[[Manifest], None],
    ) -> None:
        self._api, self._kind, self._selector = api, kind, selector
        self._resync_s, self._changed = resync_s, changed
        self._objects: dict[str, Manifest] = {}
        self._version = ""
        self.listed = asyncio.Event()
        """Set once there is a list; before, `objects` says nothing."""

    @property
    def objects(self) -> Mapping[str, Manifest]:
        """As last seen; never changed by whoever looks."""
        return self._objects

    async def follow(self) -> None:
        """Keep up until cancelled. An API that is away is asked again for ever.

        Raises `ClusterRefusedError` where the cluster does not let this process look.
        """
        backoff = Backoff()
        while True:
            try:
                await self._list()
                backoff.reset()
                await self._watch_until_resync()
            except VersionGoneError:
                _LOGGER.info("a watch's version is forgotten", extra={"kind": self._kind})
            except ClusterAwayError as error:
                await backoff.pause(error)
            except ClusterRefusedError as error:
                extra = {"kind": self._kind, "why": str(error)}
                _LOGGER.error("the cluster does not let this service look", extra=extra)
                raise

    async def _list(self) -> None:
        listed, self._version = await self._api.list_objects(self._kind, self._selector)
        by_name = {found["metadata"]["name"]: found for found in listed}
        gone = [known for name, known in self._objects.items() if name not in by_name]
        self._objects = by_name
        self.listed.set()
        for one in (*gone, *listed):
            self._changed(one)

    async def _watch_until_resync(self) -> None:
        """Watch from the last version, again and again; returns when it is time to list."""
        loop = asyncio.get_running_loop()
        resync_at = loop.time() + self._resync_s
        backoff = Backoff()
        while (left_s := resync_at - loop.time()) > 0:
            try:
                await self._watch(math.ceil(left_s), backoff)
            except ClusterAwayError as error:
                await backoff.pause(error)

    async def _watch(self, timeout_s: int, backoff: Backoff) -> None:
        watching = self._api.watch(
            self._kind, self._selector, version=self._version, timeout_s=timeout_s
        )
        async with aclosing(watching) as events:
            async for event in events:
                backoff.reset()
                self._take(event["type"], event["object"])
        # A server that hangs up at once must not be asked in a circle.
        await asyncio.sleep(_LEAST_PAUSE_S)

    def _take(self, change: str, found: Manifest) -> None:
        self._version = found["metadata"]["resourceVersion"]
        if change == "BOOKMARK":
            return
        name = found["metadata"]["name"]
        if change == "DELETED":
            self._objects.pop(name, None)
        else:
            self._objects[name] = found
        self._changed(found)
