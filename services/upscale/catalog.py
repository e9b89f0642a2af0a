"""The upscalers that the service has loaded, by name.

Filled once, when all are warm, and read by handlers.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.runtime.errors import ModelNotFoundError, UnavailableError
from services.upscale.model import LoadedUpscaler


class UpscalerCatalog:
    """Upscalers by name, and the one that a request without a name gets."""

    def __init__(self, *, default_model: str = "") -> None:
        self._models: dict[str, LoadedUpscaler] = {}
        self._default_model = default_model

    def offer(self, models: Iterable[LoadedUpscaler]) -> None:
        """Offer `models` from now on, in place of any before."""
        self._models = {model.name: model for model in models}

    @property
    def default_name(self) -> str:
        """The model that a request without a name gets; empty while none is loaded."""
        return self._default_model or next(iter(self._models), "")

    def find(self, name: str) -> LoadedUpscaler:
        """Return the model called `name`; for an empty name the default one, or the first.

        Raises UnavailableError NOT_READY while no model is loaded, and ModelNotFoundError.
        """
        if not self._models:
            raise UnavailableError("The models are still being loaded.", reason="NOT_READY")
        wanted = name or self.default_name
        model = self._models.get(wanted)
        if model is None:
            raise ModelNotFoundError(wanted, list(self._models))
        return model

    def all(self) -> list[LoadedUpscaler]:
        """Return every model, sorted by name."""
        return [self._models[name] for name in sorted(self._models)]
