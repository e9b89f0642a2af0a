"""Why an upscaler could not be loaded. Raised at start-up or by the command, never by a request.

Every message is one line for the operator.

UpscalerLoadError
├── WeightsMissingError       no such file, or the package that carries it is not installed
├── UnsupportedWeightsError   another architecture, or a variant that is not served
├── BrokenWeightsError        a file is malformed, or not the one that the descriptor means
└── DescriptorError           `upscaler.json` is malformed or at odds with the weights
"""

from __future__ import annotations


class UpscalerLoadError(Exception):
    """An upscaler could not be loaded."""


class WeightsMissingError(UpscalerLoadError):
    """No such file, or the package that carries it is not installed."""


class UnsupportedWeightsError(UpscalerLoadError):
    """Another architecture, or a variant of a known one that is not served."""


class BrokenWeightsError(UpscalerLoadError):
    """A file is malformed, or is not the one that the descriptor means."""


class DescriptorError(UpscalerLoadError):
    """`upscaler.json` is malformed or at odds with the weights."""
