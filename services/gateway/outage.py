"""What a caller hears when the database is away: UNAVAILABLE, try again; no hang, no INTERNAL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.exc import SQLAlchemyError

from services.gateway.metrics import GatewayMetrics
from services.runtime.errors import UnavailableError
from services.storage.database import is_outage

_PATIENCE_S = 5.0


@asynccontextmanager
async def refused_as_unavailable(
    metrics: GatewayMetrics, message: str = "the database does not answer now"
) -> AsyncIterator[None]:
    """Turns an outage of the database inside the block into UnavailableError (NOT_READY).

    An error that is not an outage, a defect of ours, passes. A block that takes longer than 5 s is
    an outage, too: a frozen server tells nothing.
    """
    try:
        async with asyncio.timeout(_PATIENCE_S):
            yield
    except (SQLAlchemyError, OSError) as error:  # TimeoutError is an OSError
        if not is_outage(error):
            raise
        metrics.store_errors.inc()
        raise UnavailableError(message, reason="NOT_READY") from error
