"""One signed POST to a URL that a stranger chose: where it may go, and what it says.

The host is resolved here and the connection made to the very address that was looked at, so that a
name cannot mean something else a moment later. Redirects are not followed. Everything blocks.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

from services.runtime.errors import FieldViolation

SIGNATURE_HEADER = "limner-signature"
DELIVERY_HEADER = "limner-delivery"
MAX_URL_LENGTH = 2048
MIN_SECRET_LENGTH, MAX_SECRET_LENGTH = 16, 256
_TIMEOUT_S = 10.0
_EXCHANGE_TIMEOUT_S = 20.0
"""For all that is said over a connection, however little at a time."""
_PORTS = {"http": 80, "https": 443}

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class DeliveryError(Exception):
    """It did not arrive; one line that says why."""


class WebhookClient:
    """Posts to public addresses, and to those in `allowed`."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        self._allowed = tuple(allowed)

    def violations(self, url: str, secret: str) -> Iterator[FieldViolation]:
        """What is wrong with a request's URL and secret, as far as that can be told now."""
        reason = self._fault(url)
        if reason is not None:
            yield FieldViolation(field="webhook_url", reason=reason[0], description=reason[1])
        if not MIN_SECRET_LENGTH <= len(secret) <= MAX_SECRET_LENGTH:
            allowed = (
                f"must have {MIN_SECRET_LENGTH} to {MAX_SECRET_LENGTH} characters; "
                f"got {len(secret)}"
            )
            yield FieldViolation(field="webhook_secret", reason="OUT_OF_RANGE", description=allowed)

    def post(self, url: str, body: bytes, *, secret: str, delivery_id: str) -> None:
        """Deliver; any answer from 200 to 299 counts. Raises `DeliveryError`."""
        parts = _split(url)
        if parts is None:
            raise DeliveryError("is no usable URL")
        headers = {
            "content-type": "application/json",
            "user-agent": "limner-webhook",
            DELIVERY_HEADER: delivery_id,
            SIGNATURE_HEADER: signature(secret, body, round(time.time())),
        }
        target = parts.path or "/"
        if parts.query:
            target += f"?{parts.query}"
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        connection = http.client.HTTPConnection(host, port)
        try:
            with closing(self._connect(host, port)) as plain, _cut_off_late(plain):
                connection.sock = _secured(plain, host) if parts.scheme == "https" else plain
                connection.request("POST", target, body=body, headers=headers)
                status = connection.getresponse().status
        # ValueError: a name that cannot be looked up, or not be in a certificate.
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DeliveryError(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if not 200 <= status <= 299:
            raise DeliveryError(f"answered {status}")

    def _connect(self, host: str, port: int) -> socket.socket:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if not addresses or not all(map(self._may_call, addresses)):
            raise DeliveryError(f"{host} is at an address that may not be called")
        return socket.create_connection((addresses[0], port), timeout=_TIMEOUT_S)

    def _fault(self, url: str) -> tuple[str, str] | None:
        parts = _split(url)
        if parts is None:
            text = f"must be an http or https URL of at most {MAX_URL_LENGTH} characters"
            return "MALFORMED", text
        host = parts.hostname or ""
        if host == "localhost" and not self._may_call("127.0.0.1"):
            return "BLOCKED_ADDRESS", "this server does not call itself"
        if _is_address(host) and not self._may_call(host):
            return "BLOCKED_ADDRESS", f"this server may not call {host}"
        return None

    def _may_call(self, address: str) -> bool:
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if any(ip.version == network.version and ip in network for network in self._allowed):
            return True
        return ip.is_global and not ip.is_multicast


def signature(secret: str, body: bytes, moment_s: int) -> str:
    """The header's value: a time, and the proof that whoever has the secret wrote the body then."""
    signed = f"{moment_s}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return f"t={moment_s},v1={digest}"


def _secured(plain: socket.socket, host: str) -> ssl.SSLSocket:
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host)


@contextmanager
def _cut_off_late(connected: socket.socket) -> Iterator[None]:
    """Hang up in the middle of a block that takes too long: a receiver that drips an answer would
    hold its thread for ever."""
    watched = connected.dup()  # TLS takes the other away

    def hang_up() -> None:
        with suppress(OSError):
            watched.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(_EXCHANGE_TIMEOUT_S, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        watched.close()


def _split(url: str) -> SplitResult | None:
    """The parts of a URL that can be called; None for any other."""
    if len(url) > MAX_URL_LENGTH or not url.isascii() or not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PORTS and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")  # as a look-up does
    except ValueError:
        return None
    return parts if usable and parts.username is None else None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
