"""Where the server is and how to talk to it: address, key, transport security, channel options.

Shared by both clients. The environment is read here and nowhere else: LIMNER_ADDRESS and
LIMNER_API_KEY stand in for arguments that are None.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import grpc

ADDRESS_VARIABLE = "LIMNER_ADDRESS"
API_KEY_VARIABLE = "LIMNER_API_KEY"
DEFAULT_ADDRESS = "127.0.0.1:50051"

_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A server and the right to call it."""

    address: str
    metadata: tuple[tuple[str, str], ...] = field(repr=False)
    credentials: grpc.ChannelCredentials | None
    """None: plain text."""

    @property
    def options(self) -> list[tuple[str, int]]:
        """Channel options: quick reconnection, and no proxy on the way to this machine."""
        options = [("grpc.initial_reconnect_backoff_ms", 200)]
        if is_loopback(self.address):
            options.append(("grpc.enable_http_proxy", 0))
        return options


def resolve_endpoint(
    *,
    address: str | None,
    api_key: str | None,
    tls: bool,
    credentials: grpc.ChannelCredentials | None,
) -> Endpoint:
    """Return the endpoint that arguments and environment describe.

    Raises ValueError for a key that cannot be sent; the message does not show the key.
    """
    if credentials is None and tls:
        credentials = grpc.ssl_channel_credentials()
    return Endpoint(
        address=address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS,
        metadata=_authorization(api_key or os.environ.get(API_KEY_VARIABLE)),
        credentials=credentials,
    )


def is_loopback(address: str) -> bool:
    """Tell whether an address, `host:port`, is on this machine."""
    return address.rpartition(":")[0] in _LOOPBACK_HOSTS


def _authorization(api_key: str | None) -> tuple[tuple[str, str], ...]:
    key = (api_key or "").strip()
    if not key:
        return ()
    if not key.isascii() or not key.isprintable():
        raise ValueError("the API key contains characters that no key has")
    return (("authorization", f"Bearer {key}"),)
