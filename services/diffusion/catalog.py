"""The models that the service draws with, by name: its own, and those that accounts have trained.

Its own are filled in once, when all are warm; the others are loaded by `trained` when asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from services.diffusion.model import LoadedModel
from services.diffusion.trained import TrainedModels
from services.runtime.errors import ModelNotFoundError, UnavailableError
from services.storage.catalog import SEPARATOR, CatalogEntry


class ModelCatalog:
    """Models by name, and the one that a request without a name gets."""

    def __init__(self, *, default_model: str = "", trained: TrainedModels | None = None) -> None:
        self._models: dict[str, LoadedModel] = {}
        self._default_model = default_model
        self._trained = trained

    def offer(self, models: Iterable[LoadedModel]) -> None:
        """Offer `models` from now on, in place of any before."""
        self._models = {model.name: model for model in models}

    def find(self, name: str) -> LoadedModel:
        """Return the model called `name`; for an empty name the default one, or the only one.

        Raises UnavailableError NOT_READY while no model is loaded, and ModelNotFoundError.
        """
        if not self._models:
            raise UnavailableError("The models are still being loaded.", reason="NOT_READY")
        wanted = name or self._default_model
        if not wanted and len(self._models) == 1:
            return next(iter(self._models.values()))
        model = self._models.get(wanted)
        if model is None:
            raise ModelNotFoundError(wanted, list(self._models))
        return model

    @asynccontextmanager
    async def use(self, name: str, account: str) -> AsyncIterator[tuple[LoadedModel, str]]:
        """A model and what a client calls it, for the length of a request of `account`.

        Raises as `find` does, and for a trained model as `TrainedModels.use` does.
        """
        if self._trained is None or SEPARATOR not in name or not self._models:
            model = self.find(name)
            yield model, model.name
            return
        async with self._trained.use(name, account, list(self._models)) as (model, entry):
            yield model, entry.name

    async def trained(self, account: str) -> list[tuple[CatalogEntry, LoadedModel]]:
        """What an account has trained, sorted by name, each with the model it was trained from."""
        if self._trained is None:
            return []
        entries = await self._trained.entries(account)
        return [
            (entry, self._models[entry.base_model])
            for entry in entries
            if entry.base_model in self._models
        ]

    def all(self) -> list[LoadedModel]:
        """Return every model, sorted by name."""
        return [self._models[name] for name in sorted(self._models)]
