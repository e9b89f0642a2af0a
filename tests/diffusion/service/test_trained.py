"""Trained models: drawn with at once, by their owner alone, a few at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from limner.v1 import model_pb2
from services.diffusion.families.errors import BrokenModelError
from services.diffusion.model import LoadedModel, ModelSpec
from services.diffusion.trained import ModelTooLargeError, TrainedModels, available_memory_bytes
from services.storage.catalog import CatalogEntry, FolderCatalog
from tests.diffusion.batching.doubles import AnalyticModel
from tests.diffusion.service.harness import (
    GatedModel,
    Request,
    Running,
    pictures,
    serving,
    until,
)

ACME = (("x-limner-account", "acme"),)
OTHER = (("x-limner-account", "other"),)


@pytest.fixture
def catalog(tmp_path: Path) -> FolderCatalog:
    return FolderCatalog(tmp_path / "catalog")


@pytest.fixture
def publish(catalog: FolderCatalog, tmp_path: Path) -> Callable[..., CatalogEntry]:
    result = tmp_path / "result"
    (result / "model").mkdir(parents=True)
    (result / "model" / "model_index.json").write_text("{}")

    def published(job_id: str, name: str = "", account: str = "acme") -> CatalogEntry:
        entry = CatalogEntry(
            name=f"analytic@{name or job_id}",
            job_id=job_id,
            account=account,
            base_model="analytic",
            base_revision="",
            revision="",
            method="lora",
            token="sks",
            instance_prompt="a sks toy",
            class_prompt="",
            dataset_digest="",
        )
        return catalog.publish(entry, result)

    return published


class Loader:
    """Loads closed forms and remembers what was asked for."""

    def __init__(self) -> None:
        self.specs: list[ModelSpec] = []
        self.models: dict[str, LoadedModel] = {}
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, spec: ModelSpec) -> LoadedModel:
        self.specs.append(spec)
        if spec.path_or_hub_id == "nowhere":
            return AnalyticModel(spec.name)
        assert self.gate.wait(60)
        if "broken" in spec.name:
            raise BrokenModelError("files at odds")
        if "vanishing" in spec.name and not Path(spec.path_or_hub_id).is_dir():
            raise FileNotFoundError(spec.path_or_hub_id)
        return self.models.get(spec.name) or AnalyticModel(spec.name)

    @property
    def trained(self) -> list[str]:
        return [spec.name for spec in self.specs if spec.path_or_hub_id != "nowhere"]


@asynccontextmanager
async def drawing(catalog_dir: Path, loader: Loader, **changes: object) -> AsyncIterator[Running]:
    async with serving(load=loader, catalog_dir=catalog_dir, **changes) as running:
        yield running


async def draw(running: Running, model: str, metadata: Any = ACME) -> list[Any]:
    request = Request(prompt="2", model=model, seed=1)
    return [each async for each in running.generation.GenerateImage(request, metadata=metadata)]


async def refusal(running: Running, model: str, metadata: Any = ACME) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await draw(running, model, metadata)
    status = rpc_status.from_call(refused.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason, refused.value.details() or ""


async def names(running: Running, metadata: Any = ACME) -> list[str]:
    answer = await running.models.ListModels(model_pb2.ListModelsRequest(), metadata=metadata)
    return [model.name for model in answer.models]


async def test_a_model_is_served_as_soon_as_it_is_in_the_catalogue(
    tmp_path: Path, publish: Callable[..., CatalogEntry]
) -> None:
    loader = Loader()
    async with drawing(tmp_path / "catalog", loader) as running:
        assert await names(running) == ["analytic"]
        entry = publish("job_1", "toy")
        assert await names(running) == ["analytic", "analytic@toy"]
        assert loader.trained == []
        events = await draw(running, "analytic@toy")
        assert events[0].accepted.model == "analytic@toy"
        assert len(pictures(events)) == 1
        await draw(running, "analytic@job_1")
        assert loader.trained == ["analytic@job_1"]
        answer = await running.models.ListModels(model_pb2.ListModelsRequest(), metadata=ACME)
        listed = answer.models[1]
        assert (listed.base_model, listed.revision) == ("analytic", entry.revision)
        assert listed.limits == answer.models[0].limits


async def test_a_model_that_is_deleted_while_it_is_loaded_is_not_found(
    tmp_path: Path, catalog: FolderCatalog, publish: Callable[..., CatalogEntry]
) -> None:
    loader = Loader()
    loader.gate.clear()
    async with drawing(tmp_path / "catalog", loader) as running:
        publish("vanishing", "toy")
        refused = asyncio.create_task(refusal(running, "analytic@toy"))
        await until(lambda: bool(loader.trained))
        catalog.remove("acme", "vanishing")
        loader.gate.set()
        assert (await refused)[0] == "MODEL_NOT_FOUND"


async def test_nobody_else_sees_it(tmp_path: Path, publish: Callable[..., CatalogEntry]) -> None:
    publish("job_1", "toy")
    publish("job_2", "own", account="other")
    async with drawing(tmp_path / "catalog", Loader()) as running:
        assert await names(running, OTHER) == ["analytic", "analytic@own"]
        assert await names(running, ()) == ["analytic"]
        reason, told = await refusal(running, "analytic@toy", OTHER)
        assert reason == "MODEL_NOT_FOUND"
        assert "there is: analytic, analytic@own" in told


async def test_models_of_two_accounts_may_have_one_name(
    tmp_path: Path, publish: Callable[..., CatalogEntry]
) -> None:
    publish("job_1", "toy")
    publish("job_2", "toy", account="other")
    loader = Loader()
    async with drawing(tmp_path / "catalog", loader) as running:
        await draw(running, "analytic@toy")
        await draw(running, "analytic@toy", OTHER)
    assert loader.trained == ["analytic@job_1", "analytic@job_2"]


async def test_a_model_goes_with_its_entry(
    tmp_path: Path, publish: Callable[..., CatalogEntry], catalog: FolderCatalog
) -> None:
    publish("job_1")
    async with drawing(tmp_path / "catalog", Loader()) as running:
        await draw(running, "analytic@job_1")
        catalog.remove("acme", "job_1")
        assert (await refusal(running, "analytic@job_1"))[0] == "MODEL_NOT_FOUND"
        assert await names(running) == ["analytic"]


async def test_the_least_recently_used_makes_room_and_one_that_draws_does_not(
    tmp_path: Path, publish: Callable[..., CatalogEntry]
) -> None:
    for index in range(3):
        publish(f"job_{index}")
    loader = Loader()
    gated = GatedModel("analytic@job_0")
    loader.models["analytic@job_0"] = gated
    async with drawing(tmp_path / "catalog", loader, max_trained_models=2) as running:
        busy = asyncio.create_task(draw(running, "analytic@job_0"))
        await until(lambda: running.server.batcher.running_count == 1)
        # Both come later than the one that draws, and only one of them has a place.
        first = asyncio.create_task(draw(running, "analytic@job_1"))
        await until(lambda: running.server.batcher.waiting_count == 1)
        assert (await refusal(running, "analytic@job_2"))[0] == "MODEL_SLOTS_FULL"
        gated.open()
        await asyncio.gather(busy, first)
        await draw(running, "analytic@job_0")
        await draw(running, "analytic@job_2")
        await draw(running, "analytic@job_0")
    assert loader.trained == ["analytic@job_0", "analytic@job_1", "analytic@job_2"]


async def test_without_a_place_the_answer_says_when_to_come_back(
    tmp_path: Path, publish: Callable[..., CatalogEntry]
) -> None:
    publish("job_0")
    publish("job_1")
    loader = Loader()
    gated = GatedModel("analytic@job_0")
    loader.models["analytic@job_0"] = gated
    async with drawing(tmp_path / "catalog", loader, max_trained_models=1) as running:
        busy = asyncio.create_task(draw(running, "analytic@job_0"))
        await until(lambda: running.server.batcher.running_count == 1)
        reason, told = await refusal(running, "analytic@job_1")
        assert reason == "MODEL_SLOTS_FULL"
        assert "All 1 places" in told
        gated.open()
        await busy
        await draw(running, "analytic@job_1")


async def test_requests_that_run_do_not_wait_while_a_model_is_loaded(
    tmp_path: Path, publish: Callable[..., CatalogEntry]
) -> None:
    publish("job_1")
    loader = Loader()
    loader.gate.clear()
    async with drawing(tmp_path / "catalog", loader) as running:
        waiting = [asyncio.create_task(draw(running, "analytic@job_1")) for _ in range(3)]
        await until(lambda: len(loader.trained) == 1)
        for _ in range(3):
            assert len(pictures(await draw(running, "analytic"))) == 1
        waiting[0].cancel()
        loader.gate.set()
        await asyncio.gather(*waiting[1:])
        assert loader.trained == ["analytic@job_1"]


async def test_files_that_cannot_be_loaded_are_told_without_their_place(
    tmp_path: Path, publish: Callable[..., CatalogEntry]
) -> None:
    publish("broken")
    async with drawing(tmp_path / "catalog", Loader()) as running:
        reason, told = await refusal(running, "analytic@broken")
        assert reason == "INTERNAL"
        assert str(tmp_path) not in told
        await draw(running, "analytic")


async def test_a_model_for_which_memory_does_not_suffice_is_not_loaded(
    catalog: FolderCatalog, publish: Callable[..., CatalogEntry]
) -> None:
    publish("job_1")
    loader = Loader()
    trained = TrainedModels(
        catalog,
        {"analytic": ModelSpec(name="analytic", path_or_hub_id="nowhere")},
        load=loader,
        capacity=1,
        runtime="torch",
        free_memory_bytes=lambda: 1,
    )
    with pytest.raises(ModelTooLargeError, match="needs about"):
        async with trained.use("analytic@job_1", "acme", []):
            pass
    assert loader.specs == []
    known = available_memory_bytes()
    assert known is None or known > 0
