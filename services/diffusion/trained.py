"""Models that accounts have trained: found in the catalogue, loaded when asked for, a few at once.

Used by `catalog`. A model is seen by its owner alone and goes when its entry goes. It is loaded on
a thread of its own, so that neither the event loop nor running requests wait for it, and kept until
another needs its place; one that draws keeps its place. LoRA results come merged into their base,
in the layout of any other model.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc

from services.diffusion.families.errors import ModelLoadError
from services.diffusion.model import LoadedModel, ModelSpec
from services.graphs.graph import RuntimeName
from services.runtime.errors import InternalError, LimnerError, ModelNotFoundError, QueueFullError
from services.storage.catalog import SEPARATOR, Catalog, CatalogEntry

_RETRY_S = 5.0
_SWEEP_INTERVAL_S = 10.0
# Weights as read, and as they are computed with.
_MEMORY_FACTOR = 2

_LOGGER = logging.getLogger(__name__)


class ModelSlotsFullError(QueueFullError):
    """Every place for trained models is taken by one that draws."""

    reason = "MODEL_SLOTS_FULL"

    def __init__(self, slot_count: int) -> None:
        super().__init__(_RETRY_S)
        self.message = (
            f"All {slot_count} places for trained models are in use; try again in {_RETRY_S:.0f} s."
        )


class ModelTooLargeError(LimnerError):
    """The memory that is free does not suffice for the model."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "OUT_OF_MEMORY"


class TrainedModels:
    """Loads from `catalog` what was trained from one of `bases`, `capacity` models at most."""

    def __init__(
        self,
        catalog: Catalog,
        bases: Mapping[str, ModelSpec],
        *,
        load: Callable[[ModelSpec], LoadedModel],
        capacity: int,
        runtime: RuntimeName,
        free_memory_bytes: Callable[[], int | None] | None = None,
    ) -> None:
        self._catalog, self._bases, self._load = catalog, bases, load
        self._capacity, self._runtime = capacity, runtime
        self._free_memory_bytes = free_memory_bytes or available_memory_bytes
        self._residents: dict[str, tuple[CatalogEntry, LoadedModel]] = {}
        """By job, the least recently used first."""
        self._users: Counter[str] = Counter()
        self._loading: dict[str, asyncio.Task[LoadedModel]] = {}
        self._turn = asyncio.Lock()

    async def entries(self, account: str) -> list[CatalogEntry]:
        """The account's models that this server can draw with, sorted by name."""
        entries = await asyncio.to_thread(self._catalog.entries, account)
        return [entry for entry in entries if entry.base_model in self._bases]

    @asynccontextmanager
    async def use(
        self, name: str, account: str, known: list[str]
    ) -> AsyncIterator[tuple[LoadedModel, CatalogEntry]]:
        """The account's model called `name`, kept loaded for the length of the block.

        `known` are the names of other models. Raises ModelNotFoundError, ModelSlotsFullError,
        ModelTooLargeError, and InternalError for files that cannot be loaded.
        """
        entries = await self.entries(account)
        entry = next((each for each in entries if name in _names(each)), None)
        if entry is None:
            raise ModelNotFoundError(name, [*known, *(each.name for each in entries)])
        self._users[entry.job_id] += 1
        try:
            yield await self._loaded(entry), entry
        finally:
            self._users[entry.job_id] -= 1
            if not self._users[entry.job_id]:
                del self._users[entry.job_id]

    async def sweep(self) -> None:
        """Let go of models whose entries are gone, now and then, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            for entry, _ in list(self._residents.values()):
                if await asyncio.to_thread(self._catalog.model_folder, entry) is None:
                    self._drop(entry.job_id)

    async def _loaded(self, entry: CatalogEntry) -> LoadedModel:
        resident = self._residents.pop(entry.job_id, None)
        if resident is not None:
            self._residents[entry.job_id] = resident
            return resident[1]
        loading = self._loading.get(entry.job_id)
        if loading is None:
            loading = asyncio.create_task(self._load_in_turn(entry))
            self._loading[entry.job_id] = loading
            loading.add_done_callback(lambda done: self._end_loading(entry.job_id, done))
        # Who waits may leave; the model is loaded for whoever comes next.
        return await asyncio.shield(loading)

    def _end_loading(self, job_id: str, done: asyncio.Task[LoadedModel]) -> None:
        del self._loading[job_id]
        if not done.cancelled():
            done.exception()  # whoever waited has it; everybody who waited may be gone

    async def _load_in_turn(self, entry: CatalogEntry) -> LoadedModel:
        async with self._turn:
            self._make_room()
            folder = await asyncio.to_thread(self._catalog.model_folder, entry)
            if folder is None:
                raise ModelNotFoundError(entry.name, [])
            self._require_memory(entry)
            started_at = asyncio.get_running_loop().time()
            model = await self._load_from(entry, folder)
            duration_s = asyncio.get_running_loop().time() - started_at
            extra = {"job": entry.job_id, "revision": model.revision, "duration_s": duration_s}
            _LOGGER.info("trained model is ready", extra=extra)
            self._residents[entry.job_id] = (entry, model)
            return model

    async def _load_from(self, entry: CatalogEntry, folder: Path) -> LoadedModel:
        spec = replace(
            self._bases[entry.base_model],
            # Two accounts may call their models the same; in the batcher no two models may.
            name=f"{entry.base_model}{SEPARATOR}{entry.job_id}",
            path_or_hub_id=str(folder),
            runtime=self._runtime,
            precision="auto",
        )
        try:
            return await asyncio.to_thread(self._load, spec)
        except (ModelLoadError, MemoryError, OSError) as error:
            if await asyncio.to_thread(self._catalog.model_folder, entry) is None:
                raise ModelNotFoundError(entry.name, []) from error  # deleted meanwhile
            extra = {"job": entry.job_id, "error": str(error)}
            _LOGGER.error("trained model cannot be loaded", extra=extra)
            message = f"{entry.name} cannot be loaded; the server's log has why."
            raise InternalError(message) from error

    def _make_room(self) -> None:
        while len(self._residents) >= self._capacity:
            idle = next((job_id for job_id in self._residents if not self._users[job_id]), None)
            if idle is None:
                raise ModelSlotsFullError(self._capacity)
            self._drop(idle)

    def _require_memory(self, entry: CatalogEntry) -> None:
        free_bytes = self._free_memory_bytes()
        needed_bytes = entry.size_bytes * _MEMORY_FACTOR
        if free_bytes is not None and needed_bytes > free_bytes:
            raise ModelTooLargeError(
                f"{entry.name} needs about {needed_bytes // 2**20} MiB of memory; "
                f"{free_bytes // 2**20} MiB are free."
            )

    def _drop(self, job_id: str) -> None:
        if self._residents.pop(job_id, None) is not None:
            _LOGGER.info("trained model was let go", extra={"job": job_id})


def _names(entry: CatalogEntry) -> tuple[str, str]:
    """What a request may call it: the name that was given, and the one with the job's id."""
    return entry.name, f"{entry.base_model}{SEPARATOR}{entry.job_id}"


def available_memory_bytes() -> int | None:
    """Memory of the host that a process may still take; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(parts[1]) * 1024 for parts in values), None)
