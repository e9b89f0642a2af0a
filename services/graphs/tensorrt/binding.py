"""The TensorRT package that is installed, and what may differ between the two.

`tensorrt` is for data-centre GPUs and builds for the one that it sees; `tensorrt_rtx` is for GPUs
with display outputs, builds without any, for several in one engine. Their interfaces agree.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from services.graphs.graph import RuntimeMissingError

_PACKAGES = ("tensorrt", "tensorrt_rtx")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Binding:
    """An installed TensorRT."""

    name: str
    """`tensorrt` or `tensorrt_rtx`."""
    module: ModuleType
    log: Any
    """`Remarks`, which every builder and runtime of the process shares."""

    @property
    def version(self) -> str:
        """Version of the package; engines of another are not read."""
        return str(self.module.__version__)

    @property
    def chooses_gpus(self) -> bool:
        """Whether engines are built for named GPUs; otherwise for the one in the machine."""
        return self.name == "tensorrt_rtx"


@cache
def open_binding() -> Binding:
    """The installed package, that for data-centre GPUs where both are.

    Raises `RuntimeMissingError` without any.
    """
    for name in _PACKAGES:
        try:
            module = import_module(name)
        except ImportError:
            continue
        return Binding(name=name, module=module, log=_remarks(module))
    raise RuntimeMissingError(
        "runtime tensorrt needs a package: pip install 'limner[tensorrt]' for RTX GPUs, "
        "NVIDIA's own tensorrt for those in data centres"
    )


def _remarks(module: ModuleType) -> Any:
    severity = module.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
    }

    class Remarks(module.ILogger):  # type: ignore[name-defined,misc]
        """Passes TensorRT's remarks to the log, and keeps the last error for an exception."""

        def __init__(self) -> None:
            super().__init__()
            self.last_error = ""

        def log(self, level: Any, message: str) -> None:
            """Called by TensorRT."""
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.last_error = message
            _LOGGER.log(levels.get(level, logging.DEBUG), "%s", message)

    return Remarks()
