"""The models that the service has loaded, by name.

Filled once, when all models are warm, and read by handlers.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.diffusion.model import LoadedModel
from services.runtime.errors import ModelNotFoundError, UnavailableError


class ModelCatalog:
    """Models by name, and the one that a request without a name gets."""

    def __init__(self, *, default_model: str = "") -> None:
        self._models: dict[str, LoadedModel] = {}
        self._default_model = default_model

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

    def all(self) -> list[LoadedModel]:
        """Return every model, sorted by name."""
        return [self._models[name] for name in sorted(self._models)]
