"""Why a model could not be loaded. Raised at start-up, never in answer to a request.

Every message is one line for the operator and names the model's folder or id.

ModelLoadError
├── ModelNotReachableError   no such folder, and the hub does not give it
├── UnsupportedModelError    another architecture, or a variant that is not served
├── UnsafeWeightsError       weights that would have to be unpickled
└── BrokenModelError         files missing, malformed or at odds with each other
"""

from __future__ import annotations


class ModelLoadError(Exception):
    """A model could not be loaded."""


class ModelNotReachableError(ModelLoadError):
    """No such folder, and the hub does not give it."""


class UnsupportedModelError(ModelLoadError):
    """Another architecture, or a variant of a known one that is not served."""


class UnsafeWeightsError(ModelLoadError):
    """Weights in a format that would have to be unpickled."""


class BrokenModelError(ModelLoadError):
    """Files missing, malformed or at odds with each other."""
