"""Is the token a word that the base model knows? Then training pulls at the meaning of that word.

Called by `trainings` on a thread: it reads files of the base model.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from services.trainer.job import JobWarning

# Byte-pair vocabularies list merges by frequency: what comes early is a word that a text encoder
# saw often. In CLIP's, `dog` is number 1929 and `sks` number 48136 of 49408.
_COMMON_TOKEN_COUNT = 20_000
_END_OF_WORD = "</w>"


def token_warnings(token: str, base: Path) -> tuple[JobWarning, ...]:
    """The warning about a token that means something already, or nothing."""
    if token.lower() not in _known_words(base):
        return ()
    message = (
        f"{token!r} is a word that the base model knows; the subject will be mixed up with it. "
        "Choose a word that means nothing, for example sks."
    )
    return (JobWarning(code="TOKEN_IS_A_WORD", message=message, field="token"),)


@lru_cache(maxsize=8)
def _known_words(base: Path) -> frozenset[str]:
    """Words of the model's card and those that its tokenizer has whole among the common ones."""
    card = _read(base / "limner.json")
    listed = [str(word) for word in card.get("words", [])]
    for phrases in (card.get("vocabulary") or {}).values():
        listed += [word for phrase in phrases for word in str(phrase).split()]
    vocabulary = _read(base / "tokenizer" / "vocab.json")
    if not vocabulary:
        vocabulary = _read(base / "tokenizer" / "tokenizer.json").get("model", {}).get("vocab", {})
    whole = (
        piece.removesuffix(_END_OF_WORD)
        for piece, number in vocabulary.items()
        if piece.endswith(_END_OF_WORD) and number < _COMMON_TOKEN_COUNT
    )
    return frozenset(word.lower() for word in (*listed, *whole) if len(word) > 1)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is none; the run itself refuses broken files."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
