"""The folder of a local suite: database, pepper, the first API key, logs.

Made by `limner up` on its first start and found again by the next. `limner keys` and
`limner generate` look in the same places.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from services.gateway.audit import Actor
from services.gateway.key_format import digest_key
from services.gateway.key_store import KeyStore
from services.gateway.pepper import load_or_create_pepper
from services.gateway.schema import migrate
from services.gateway.scopes import ALL_SCOPES
from services.gateway.tiers import UNLIMITED_TIER
from services.storage.database import open_engine

ACCOUNT = "local"
_KEY_NAME = "limner up"
_LOCK_FILE = ".lock"
_ACTOR = Actor(account=ACCOUNT, key_id="", request_id="limner-up")


class DataFolderInUseError(OSError):
    """Another suite runs in the folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"another `limner up` runs in {path}; stop it, or choose a folder with --data-dir"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFolder:
    """The places in the folder at `path`."""

    path: Path

    @property
    def key_file(self) -> Path:
        """The API key of the account `local`, mode 0600."""
        return self.path / "api-key"

    @property
    def trainer(self) -> Path:
        """Datasets, checkpoints and jobs of the trainer."""
        return self.path.resolve() / "trainer"

    @property
    def catalog(self) -> Path:
        """Trained models."""
        return self.path.resolve() / "models"

    @property
    def logs(self) -> Path:
        """The logs of the services."""
        return self.path / "logs"

    @property
    def database_url(self) -> str:
        """The gateway's database."""
        return f"sqlite+aiosqlite:///{self.path.resolve() / 'gateway.db'}"

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Keep other suites out for the length of a block; the folder is made if it is missing.

        Two gateways on one database would each grant all of a limit. The system gives the lock back
        however its holder ends. Raises OSError, `DataFolderInUseError` where another suite runs.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.path / _LOCK_FILE).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataFolderInUseError(self.path) from None
            yield

    async def prepare(self) -> str:
        """Create what is missing and return the pepper.

        The key may do everything, and its account has no limits. A key in the file that the
        database does not know, no longer accepts, or that may do less, is replaced.
        Raises OSError and PepperError.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        pepper = load_or_create_pepper(self.path)
        engine = open_engine(self.database_url)
        try:
            await migrate(engine)
            store = KeyStore(engine=engine)
            if not await self._has_valid_key(store, pepper):
                key, _ = await store.create_key(
                    account=ACCOUNT,
                    name=_KEY_NAME,
                    pepper=pepper.encode(),
                    actor=_ACTOR,
                    scopes=ALL_SCOPES,
                    new_account_tier=UNLIMITED_TIER,
                )
                self._store_key(key.text)
        finally:
            await engine.dispose()
        return pepper

    def read_key(self) -> str:
        """Return the API key. Raises OSError before `prepare`."""
        return self.key_file.read_text().strip()

    async def _has_valid_key(self, store: KeyStore, pepper: str) -> bool:
        if not self.key_file.exists():
            return False
        record = await store.find_key(digest_key(self.read_key(), pepper.encode()))
        if record is None or record.state(datetime.now(UTC)) != "active":
            return False
        return record.scopes == ALL_SCOPES

    def _store_key(self, key: str) -> None:
        draft = self.path / f".api-key.{secrets.token_hex(4)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(key + "\n")
            draft.replace(self.key_file)
        finally:
            with suppress(FileNotFoundError):
                draft.unlink()
