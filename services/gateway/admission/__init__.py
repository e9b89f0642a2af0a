"""Admission: who may run what now, what it costs, and that it is charged exactly once.

`control` decides on top of a store (`memory_store`, `redis_store`) and the ledger of record;
`lease` is what the relay sees of it.
"""

from services.gateway.admission.control import AdmissionControl
from services.gateway.admission.lease import (
    Admission,
    AdmissionRequest,
    Admitted,
    Delivery,
    Lease,
    MetadataPairs,
)
from services.gateway.admission.refusals import AlreadyRunningError, LimitReachedError

__all__ = [
    "Admission",
    "AdmissionControl",
    "AdmissionRequest",
    "Admitted",
    "AlreadyRunningError",
    "Delivery",
    "Lease",
    "LimitReachedError",
    "MetadataPairs",
]
