"""From the `authorization` metadata to the caller.

`Authenticator.identify` is what the runtime's interceptor asks before any handler runs. Whatever a
client claims in `x-limner-*` metadata is not looked at. Neither keys nor digests reach a log or an
error message. What a key may do is checked by the handlers, with `Caller.require`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from services.gateway.key_format import digest_key, is_well_formed
from services.gateway.key_store import KeyRecord
from services.gateway.metrics import NO_TIER, GatewayMetrics
from services.gateway.outage import refused_as_unavailable
from services.gateway.scopes import Scope
from services.gateway.tiers import TierCatalog, UnknownTierError
from services.runtime.context import Identity, Metadata
from services.runtime.errors import LimnerError, PermissionDeniedError, UnauthenticatedError

_SCHEME = "bearer"


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Whose key a call was made with."""

    account: str
    tier_name: str
    """The account's; the tier file may have lost it since."""
    key_id: str
    key_created: datetime
    scopes: frozenset[Scope]

    def require(self, scope: Scope) -> None:
        """Raises PermissionDeniedError unless the key has this scope."""
        if scope not in self.scopes:
            raise PermissionDeniedError(
                f"the API key {self.key_id} lacks the scope {scope!r}", reason="SCOPE_MISSING"
            )


_CALLER: ContextVar[Caller] = ContextVar("limner_caller")


def current_caller() -> Caller:
    """The caller of the call that this task serves; LookupError outside of one."""
    return _CALLER.get()


def find_caller() -> Caller | None:
    """The caller of the call that this task serves; None where that is not known."""
    return _CALLER.get(None)


class KeyFinder(Protocol):
    """Where keys are looked up."""

    def recall(self, digest: bytes) -> KeyRecord | None:
        """The key with this digest if it is known as it is now, without a look at the database."""

    async def find_key(self, digest: bytes) -> KeyRecord | None:
        """The key with this digest in whatever state, or None."""


class Authenticator:
    """Checks API keys against `keys`, whose digests were made under `pepper`.

    `on_use` hears the id of each key that opens the door, `on_open` the digest, in the task of the
    call.
    """

    def __init__(
        self,
        keys: KeyFinder,
        *,
        pepper: bytes,
        tiers: TierCatalog,
        metrics: GatewayMetrics,
        on_use: Callable[[str, datetime], None] = lambda key_id, at: None,
        on_open: Callable[[bytes], None] = lambda digest: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keys = keys
        self._pepper = pepper
        self._tiers = tiers
        self._on_use = on_use
        self._on_open = on_open
        self._metrics = metrics
        self._now = now

    async def identify(self, metadata: Metadata) -> Identity:
        """Tells who calls and remembers it for `current_caller` in this task.

        Raises UnauthenticatedError saying what is wrong with the key, PermissionDeniedError when
        the account is suspended, UnavailableError when the database does not answer.
        """
        try:
            caller = await self._authenticate(metadata)
        except (UnauthenticatedError, PermissionDeniedError):
            self._metrics.count_admission(NO_TIER, "", "auth")
            raise
        _CALLER.set(caller)
        try:
            tier = self._tiers.get(caller.tier_name)
        except UnknownTierError:
            return Identity(account=caller.account)  # admission refuses what needs a tier
        return Identity(
            account=caller.account, priority=tier.priority, queue_share=tier.queue_share
        )

    async def _authenticate(self, metadata: Metadata) -> Caller:
        text = _bearer_token(metadata)
        digest = digest_key(text, self._pepper)
        record = self._keys.recall(digest) or await self._find(text, digest)
        now = self._now()
        refusal = find_refusal(record, now)
        if refusal is not None:
            raise refusal
        self._on_use(record.key_id, now)
        self._on_open(digest)
        return Caller(
            account=record.account,
            tier_name=record.tier,
            key_id=record.key_id,
            key_created=record.created,
            scopes=record.scopes,
        )

    async def _find(self, text: str, digest: bytes) -> KeyRecord:
        """A key that was not remembered; one with a typo is not looked up."""
        if not is_well_formed(text):
            raise UnauthenticatedError(
                "this is not an API key, or it has a typo", reason="KEY_MALFORMED"
            )
        async with refused_as_unavailable(self._metrics, "keys cannot be checked now"):
            record = await self._keys.find_key(digest)
        if record is None:
            raise UnauthenticatedError("the API key is unknown", reason="KEY_UNKNOWN")
        return record


def find_refusal(record: KeyRecord, now: datetime) -> LimnerError | None:
    """Why a key opens nothing now; None: it does."""
    state = record.state(now)
    if state == "revoked":
        return UnauthenticatedError("the API key was revoked", reason="KEY_REVOKED")
    if state == "expired":
        return UnauthenticatedError("the API key has expired", reason="KEY_EXPIRED")
    if record.suspended_at is not None:
        message = f"the account {record.account} is suspended"
        return PermissionDeniedError(message, reason="ACCOUNT_SUSPENDED")
    return None


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
