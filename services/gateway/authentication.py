"""From the `authorization` metadata to the caller.

`Authenticator.identify` is what the runtime's interceptor asks before any handler runs. Whatever a
client claims in `x-limner-*` metadata is not looked at. Neither keys nor digests reach a log or an
error message.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from services.gateway.key_format import digest_key, is_well_formed
from services.gateway.key_store import KeyRecord
from services.gateway.metrics import NO_TIER, GatewayMetrics
from services.runtime.context import Identity, Metadata
from services.runtime.errors import UnauthenticatedError, UnavailableError

_SCHEME = "bearer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Whose key a call was made with."""

    account: str
    key_id: str
    key_created: datetime


_CALLER: ContextVar[Caller] = ContextVar("limner_caller")


def current_caller() -> Caller:
    """The caller of the call that this task serves; LookupError outside of one."""
    return _CALLER.get()


class KeyFinder(Protocol):
    """Where keys are looked up."""

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        """The key with this digest in whatever state, or None."""


class Authenticator:
    """Checks API keys against `keys`, whose digests were made under `pepper`."""

    def __init__(
        self,
        keys: KeyFinder,
        *,
        pepper: bytes,
        metrics: GatewayMetrics,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keys = keys
        self._pepper = pepper
        self._metrics = metrics
        self._now = now

    async def identify(self, metadata: Metadata) -> Identity:
        """Tells who calls and remembers it for `current_caller` in this task.

        Raises UnauthenticatedError saying what is wrong with the key, UnavailableError when the
        database does not answer.
        """
        try:
            caller = await self._authenticate(metadata)
        except UnauthenticatedError:
            self._metrics.admissions.labels(NO_TIER, "", "auth").inc()
            raise
        except (SQLAlchemyError, OSError) as error:  # asyncpg refuses with the latter
            self._metrics.store_errors.inc()
            raise UnavailableError("keys cannot be checked now", reason="NOT_READY") from error
        _CALLER.set(caller)
        return Identity(account=caller.account)

    async def _authenticate(self, metadata: Metadata) -> Caller:
        text = _bearer_token(metadata)
        if not is_well_formed(text):
            raise UnauthenticatedError(
                "this is not an API key, or it has a typo", reason="KEY_MALFORMED"
            )
        record = await self._keys.find_key(digest_key(text, self._pepper))
        if record is None:
            raise UnauthenticatedError("the API key is unknown", reason="KEY_UNKNOWN")
        state = record.state(self._now())
        if state == "revoked":
            raise UnauthenticatedError("the API key was revoked", reason="KEY_REVOKED")
        if state == "expired":
            raise UnauthenticatedError("the API key has expired", reason="KEY_EXPIRED")
        return Caller(account=record.account, key_id=record.key_id, key_created=record.created)


def _bearer_token(metadata: Metadata) -> str:
    values = [value for name, value in metadata if name == "authorization"]
    if not values:
        raise UnauthenticatedError(
            "send an API key in the metadata: 'authorization: Bearer lmn_live_…'",
            reason="KEY_MISSING",
        )
    scheme, _, token = str(values[0]).partition(" ")
    if len(values) > 1 or scheme.lower() != _SCHEME:
        raise UnauthenticatedError(
            "send exactly one 'authorization: Bearer lmn_live_…'", reason="KEY_MALFORMED"
        )
    return token.strip()
