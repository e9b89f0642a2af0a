"""Where the server is and how to talk to it: address, key, transport security, channel options.

Shared by both clients. The environment is read here and nowhere else: LIMNER_ADDRESS and
LIMNER_API_KEY stand in for arguments that are None.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

import grpc

from services.client.errors import ArgumentError

ADDRESS_VARIABLE = "LIMNER_ADDRESS"
API_KEY_VARIABLE = "LIMNER_API_KEY"
DEFAULT_ADDRESS = "127.0.0.1:50051"

_ADDRESS = re.compile(r"(?:dns:///)?(?:[^\s:/\[\]]+|\[[0-9A-Fa-f:.]+(?:%\w+)?\]):([0-9]{1,5})")
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

    Raises ArgumentError for an address that is none, and for a key that cannot be sent; that
    message does not show the key.
    """
    if address is None:
        address = os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    _check_address(address)
    if credentials is None and tls:
        credentials = grpc.ssl_channel_credentials()
    return Endpoint(
        address=address,
        metadata=_authorization(api_key or os.environ.get(API_KEY_VARIABLE)),
        credentials=credentials,
    )


def is_loopback(address: str) -> bool:
    """Tell whether an address, `host:port`, is on this machine."""
    return address.rpartition(":")[0] in _LOOPBACK_HOSTS


def _check_address(address: str) -> None:
    """Raise ArgumentError unless grpc would take the address as it is meant.

    It takes the port modulo 65536, and 443 where there is none.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match[1]) <= 65535:
        allowed = "must be HOST:PORT, an IPv6 host in brackets, with a port of 1 to 65535"
        raise ArgumentError("address", f"{allowed}; got {address!r}")


def _authorization(api_key: str | None) -> tuple[tuple[str, str], ...]:
    key = (api_key or "").strip()
    if not key:
        return ()
    if not key.isascii() or not key.isprintable():
        raise ArgumentError("api_key", "the API key contains characters that no key has")
    return (("authorization", f"Bearer {key}"),)
