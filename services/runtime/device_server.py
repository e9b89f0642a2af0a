"""A gRPC server in front of a device: thread, batcher and models, put together and taken apart.

What the servers of all models have in common. Models are loaded on the device thread while the
server already answers health checks with NOT_SERVING. `serve_device` is the process around it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from prometheus_client import CollectorRegistry

from services.runtime.device_model import DeviceModel
from services.runtime.device_worker import DeviceWorker
from services.runtime.errors import LimnerError, UnavailableError
from services.runtime.metrics import new_registry, serve_metrics
from services.runtime.server import GrpcServer, run_until_signal
from services.runtime.settings import Address

_LOGGER = logging.getLogger(__name__)


class DeviceBatcher(Protocol):
    """What the device thread repeats."""

    def tick(self) -> bool:
        """Do one step; False when there is nothing to do until the worker is woken."""
        ...

    def abort(self, error: LimnerError) -> None:
        """End every job with `error` and refuse new ones; once the device thread has ended."""
        ...


ModelT = TypeVar("ModelT", bound=DeviceModel)
BatcherT = TypeVar("BatcherT", bound=DeviceBatcher)


class DeviceServer(Generic[ModelT, BatcherT]):
    """A server, its device thread and its models.

    `loads` are called one after the other, then `settle` with all models, on the device thread;
    then `offer` puts them on sale on the event loop, and the server is SERVING.
    """

    def __init__(
        self,
        grpc: GrpcServer,
        *,
        worker: DeviceWorker,
        batcher: BatcherT,
        loads: Sequence[Callable[[], ModelT]],
        settle: Callable[[Sequence[ModelT]], None],
        offer: Callable[[Sequence[ModelT]], None],
    ) -> None:
        self.grpc = grpc
        self.batcher = batcher
        self.port = 0
        """Where it listens, once started."""
        self._worker = worker
        self._loads = loads
        self._settle = settle
        self._offer = offer
        self._loading: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[BaseException] | None = None

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        """Gets what made the server useless, a lost device or a model that does not load."""
        assert self._failed is not None, "the server has not been started"
        return self._failed

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen and load; on leaving, drain without a grace unless that was done, and stop.

        Raises OSError when the address cannot be bound.
        """
        try:
            await self._start()
            yield
        finally:
            await self.grpc.drain(0)
            await self._stop()

    async def loaded(self) -> None:
        """Wait until the models are warm; raises what kept one from it."""
        assert self._loading is not None, "the server has not been started"
        await asyncio.shield(self._loading)

    async def _start(self) -> None:
        self._failed = asyncio.get_running_loop().create_future()
        self._worker.start(self.batcher.tick)
        self._worker.failed.add_done_callback(self._device_failed)
        self.port = await self.grpc.start()
        self._loading = asyncio.create_task(self._load())
        self._loading.add_done_callback(self._loaded)

    async def _stop(self) -> None:
        if self._loading is not None and not self._loading.done():
            # What loads cannot be interrupted; its thread ends with the process.
            self._loading.cancel()
        else:
            await self._worker.stop()

    async def _load(self) -> None:
        clock = asyncio.get_running_loop().time
        models: list[ModelT] = []
        for load in self._loads:
            started_at = clock()
            model = await self._worker.call(load)
            await self._worker.call(model.warm_up)
            extra = {"model": model.name, "revision": model.revision}
            _LOGGER.info("model is ready", extra=extra | {"duration_s": clock() - started_at})
            models.append(model)
        await self._worker.call(self._settle, models)
        self._offer(models)
        self.grpc.set_serving(True)

    def _loaded(self, loading: asyncio.Task[None]) -> None:
        error = None if loading.cancelled() else loading.exception()
        if error is not None and not self.failed.done():
            self.failed.set_result(error)

    def _device_failed(self, failed: asyncio.Future[BaseException]) -> None:
        if failed.cancelled():
            return
        self.grpc.set_serving(False)
        self.batcher.abort(UnavailableError(reason="BACKEND_LOST"))
        if not self.failed.done():
            self.failed.set_result(failed.result())


def serve_device(
    name: str,
    metrics_address: Address,
    open_server: Callable[[CollectorRegistry], AbstractAsyncContextManager[DeviceServer[Any, Any]]],
    *,
    start_errors: tuple[type[Exception], ...] = (OSError,),
) -> NoReturn:
    """Be the process of the server `name`: serve until SIGTERM or SIGINT, and exit.

    The exit code is 1 when the device or a model failed, or when opening raised one of
    `start_errors`; stderr says why.
    """
    try:
        code = asyncio.run(_serve(name, metrics_address, open_server))
    except start_errors as error:
        print(f"the {name} server cannot start: {error}", file=sys.stderr)
        code = 1
    if any(thread.daemon for thread in threading.enumerate()):
        # A model was still being loaded, in native code that a daemon thread cannot leave: the
        # interpreter's own shutdown would abort under it.
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


async def _serve(
    name: str,
    metrics_address: Address,
    open_server: Callable[[CollectorRegistry], AbstractAsyncContextManager[DeviceServer[Any, Any]]],
) -> int:
    registry = new_registry(name)
    with serve_metrics(metrics_address, registry):
        async with open_server(registry) as server:
            code = await run_until_signal(server.grpc, failed=server.failed)
            if code:
                error = server.failed.result()
                print(f"the {name} server failed: {error}", file=sys.stderr)
            return code
