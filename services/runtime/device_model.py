"""What the models of all servers have in common, whatever they compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class DeviceModel(Protocol):
    """A model that is ready to compute.

    Attributes may be used from any thread, methods from the device thread alone, unless they say
    otherwise.
    """

    @property
    def name(self) -> str:
        """Name for requests."""
        ...

    @property
    def display_name(self) -> str:
        """Name for people."""
        ...

    @property
    def revision(self) -> str:
        """Digest of weights and configuration, 16 hexadecimal digits."""
        ...

    @property
    def description(self) -> str:
        """One paragraph for people; empty when unknown."""
        ...

    @property
    def family(self) -> str:
        """Architecture, for example `sd1` or `srvgg`."""
        ...

    @property
    def license(self) -> str:
        """Licence of the weights, an SPDX expression or a name; empty when unknown."""
        ...

    @property
    def device(self) -> str:
        """Torch device that it runs on: `cpu` or `cuda`."""
        ...

    @property
    def runtimes(self) -> Mapping[str, str]:
        """What each component runs on, for example `{"denoiser": "openvino-bfloat16"}`."""
        ...

    def warm_up(self) -> None:
        """Run every graph once, so that no request pays for compilation."""
        ...
