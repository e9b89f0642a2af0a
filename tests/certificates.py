"""Certificates for tests, made on the spot by an authority of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme

from services.runtime.tls import ClientTls, ServerTls


@dataclass(kw_only=True)
class Authority:
    """An authority whose certificates are written to files."""

    folder: Path
    made: trustme.CA

    @property
    def ca(self) -> Path:
        """The file to trust."""
        path = self.folder / "ca.pem"
        self.made.cert_pem.write_to_path(path)
        return path

    def server(self, name: str = "localhost", *, client_ca: Path | None = None) -> ServerTls:
        """What a server of this name shows."""
        certificate, key = self._write(name)
        return ServerTls(certificate=certificate, key=key, client_ca=client_ca)

    def client(self, name: str = "client") -> ClientTls:
        """What a client shows that trusts this authority."""
        certificate, key = self._write(name)
        return ClientTls(ca=self.ca, certificate=certificate, key=key)

    def _write(self, name: str) -> tuple[Path, Path]:
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        if not certificate.exists():
            issued = self.made.issue_cert(name)
            certificate.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
            issued.private_key_pem.write_to_path(key)
        return certificate, key


def new_authority(folder: Path) -> Authority:
    """An authority that nobody trusts yet, with its files in `folder`, which is made."""
    folder.mkdir()
    return Authority(folder=folder, made=trustme.CA())
