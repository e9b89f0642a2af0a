"""TLS from files: for a server, reloaded without a restart; for the channels to its neighbours.

Files are PEM. The server's are looked at again at every handshake, which costs a look at their
dates while nothing changed; connections that exist keep what they have. A pair that is half
replaced or broken changes nothing: the last good one stays, and the log says so once. A renewed
client certificate is read by channels that are made later.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

import grpc
from pydantic import model_validator

from services.runtime.settings import Settings

_Version: TypeAlias = tuple[tuple[int, int, int], ...]

_log = logging.getLogger(__name__)


class TlsFileError(OSError):
    """A file cannot be read, or what is in it cannot be used; the message says which and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerTls:
    """What a server shows, and whom it lets connect."""

    certificate: Path
    """Its certificate, then those between it and the authority."""
    key: Path
    client_ca: Path | None = None
    """Authorities of clients: whoever lacks a certificate of theirs cannot connect. None: anybody
    can, and is known by an API key or not at all."""

    def credentials(self) -> grpc.ServerCredentials:
        """For a server's port. Raises TlsFileError."""
        reloading = _ReloadingCertificate(self)
        return grpc.dynamic_ssl_server_credentials(
            reloading.current,
            reloading.fetch,  # type: ignore[arg-type] # None, "no change", is missing in the stubs
            require_client_authentication=self.client_ca is not None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientTls:
    """Whom a client trusts, and what it shows. Without a certificate it shows nothing."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel. Raises TlsFileError."""
        return grpc.ssl_channel_credentials(
            _read(self.ca),
            None if self.key is None else _read(self.key),
            None if self.certificate is None else _read(self.certificate),
        )


class ServerTlsSettings(Settings):
    """The part of a server's settings that makes its port speak TLS."""

    tls_certificate: Path | None = None
    """PEM file; its renewal needs no restart. Absent: plain text."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """PEM file of the authorities whose certificates clients must show; absent: none."""

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        prefix = f"{self.model_config.get('env_prefix', '')}TLS_"
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError(f"{prefix}CERTIFICATE and {prefix}KEY go together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError(f"{prefix}CLIENT_CA needs {prefix}CERTIFICATE and {prefix}KEY")
        return self

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """For the port; None: plain text. Raises TlsFileError."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return ServerTls(
            certificate=self.tls_certificate, key=self.tls_key, client_ca=self.tls_client_ca
        ).credentials()


class _ReloadingCertificate:
    """Called by gRPC at each handshake, on a thread of its own."""

    def __init__(self, files: ServerTls) -> None:
        self._files = files
        self._version = _version(_paths(files))
        self.current = _load(files)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """The certificate to show from now on; None: the same as before."""
        version = _version(_paths(self._files))
        if version == self._version:
            return None
        try:
            loaded = _load(self._files)
        except TlsFileError as error:
            self._version = version
            _log.error("certificate not reloaded, the last stays", extra={"why": str(error)})
            return None
        if _version(_paths(self._files)) != version:
            return None  # replaced while it was read: the next handshake looks again
        self._version = version
        self.current = loaded
        _log.info("certificate reloaded", extra={"path": str(self._files.certificate)})
        return loaded


def _paths(files: ServerTls) -> Sequence[Path]:
    paths = (files.certificate, files.key, files.client_ca)
    return [path for path in paths if path is not None]


def _version(paths: Sequence[Path]) -> _Version | None:
    """Tells one set of files from the next, also where they are links that are swapped."""
    try:
        statuses = [path.stat() for path in paths]
    except OSError:
        return None
    return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in statuses)


def _load(files: ServerTls) -> grpc.ServerCertificateConfiguration:
    """Read and check: gRPC itself takes any bytes, and then fails every handshake."""
    pair = (_read(files.key), _read(files.certificate))
    client_ca = None if files.client_ca is None else _read(files.client_ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # The empty password refuses an encrypted key instead of asking the terminal.
        context.load_cert_chain(files.certificate, files.key, password="")
        if client_ca is not None:
            context.load_verify_locations(cadata=client_ca.decode("ascii"))
    except (ssl.SSLError, UnicodeError) as error:
        names = ", ".join(map(str, _paths(files)))
        raise TlsFileError(f"{names} cannot be used for TLS: {error}") from error
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=client_ca)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFileError(f"{path} cannot be read: {error.strerror}") from error
