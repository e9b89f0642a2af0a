"""The token by which a run is known: an HMAC of the attempt that it is, under the service's key.

Nothing has to be kept: the service makes the token again to compare it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac


def run_token(key: bytes, job_id: str, attempt: int) -> str:
    """The token of an attempt, 43 characters that fit into metadata."""
    message = f"limner run {job_id} {attempt}".encode()
    digest = hmac.digest(key, message, hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def is_run_token(token: str, key: bytes, job_id: str, attempt: int) -> bool:
    """Whether a token is that of an attempt; takes as long whatever is wrong with it."""
    expected = run_token(key, job_id, attempt)
    return hmac.compare_digest(token.encode(errors="replace"), expected.encode())
