"""The text of an API key: `lmn_live_<key id>_<32 random bytes, base62>_<crc32, base62>`.

A double click selects all of it, the prefix lets secret scanners find it, and the checksum rejects
a typo without a look-up. Used where keys are made and where they are checked; it stores nothing.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_PREFIX = "lmn_live"
_ID_LENGTH = 12
_SECRET_BYTES = 32
_SECRET_LENGTH = 43  # ceil(256 / log2(62))
_CHECKSUM_LENGTH = 6  # ceil(32 / log2(62))
_PATTERN = re.compile(
    rf"{_PREFIX}_([0-9A-Za-z]{{{_ID_LENGTH}}})"
    rf"_[0-9A-Za-z]{{{_SECRET_LENGTH}}}_([0-9A-Za-z]{{{_CHECKSUM_LENGTH}}})",
    re.ASCII,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewKey:
    """A key that was just made. Its text is shown once and never stored."""

    key_id: str
    text: str = field(repr=False)


def make_key() -> NewKey:
    """A new key from the operating system's random source."""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))
    secret = _base62(int.from_bytes(secrets.token_bytes(_SECRET_BYTES)), _SECRET_LENGTH)
    body = f"{_PREFIX}_{key_id}_{secret}"
    return NewKey(key_id=key_id, text=f"{body}_{_checksum(body)}")


def is_well_formed(text: str) -> bool:
    """Whether `text` has the form of a key and its checksum is right. Says nothing of validity."""
    match = _PATTERN.fullmatch(text)
    return match is not None and _checksum(text.rpartition("_")[0]) == match.group(2)


def digest_key(text: str, pepper: bytes) -> bytes:
    """HMAC-SHA256 of the whole key under the pepper, 32 bytes: all that is stored of a key."""
    mac = _keyed(pepper).copy()
    mac.update(text.encode())
    return mac.digest()


@functools.lru_cache(maxsize=1)
def _keyed(pepper: bytes) -> hmac.HMAC:
    """To be copied: a MAC that is made anew looks its algorithm up, which takes longer than it."""
    return hmac.new(pepper, digestmod=hashlib.sha256)


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_LENGTH)


def _base62(value: int, length: int) -> str:
    digits = []
    for _ in range(length):
        value, digit = divmod(value, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
