"""Which words of a prompt a model with a closed vocabulary never saw, and what comes nearest.

Called for the notices of a request; any thread. It looks at spelling only: what a word means, and
what the model will make of it, it cannot tell.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.diffusion.model import Vocabulary

# Words that shape a sentence and draw nothing of their own.
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be by for from has have her his i in into is it its like made me my of
        on one or our over please some that the their them there this to under up very we with you
        your background backgrounds coloured colored color colour draw drawing emoji icon image
        illustration make paint painting photo picture show sketch style""",
    )
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_PLURALS = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"))
_SIMILARITY = 0.72
_SUGGESTION_COUNT = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class UnknownWord:
    """A word that the model never saw, with the names of known things that are spelt alike."""

    word: str
    suggestions: tuple[str, ...]


class WordList:
    """The words of a vocabulary, ready to check prompts against."""

    def __init__(self, vocabulary: Vocabulary, other_words: Iterable[str] = ()) -> None:
        """`other_words` are known too but never suggested: synonyms, fillers.

        A name of several words is known only as a whole: who knows a first aid kit need not know
        a kit.
        """
        names = (*vocabulary.concepts, *vocabulary.styles, *vocabulary.backgrounds)
        self._concepts_of = _names_by_word(vocabulary.concepts)
        self._known = {tuple(_words(name)) for name in (*names, *other_words, *_STOP_WORDS)}
        self._longest = max(map(len, self._known))

    def unknown_words(self, prompt: str) -> list[UnknownWord]:
        """Words of `prompt` that belong to no known name, in order, each once."""
        words, unseen = _words(prompt), []
        while words:
            length = self._known_length(words)
            if length == 0:
                unseen.append(words[0])
            del words[: max(1, length)]
        return [
            UnknownWord(word=word, suggestions=self._suggestions(word))
            for word in dict.fromkeys(unseen)
        ]

    def _known_length(self, words: Sequence[str]) -> int:
        """How many of the first `words` the longest known name takes; 0 if none does."""
        for length in range(min(self._longest, len(words)), 0, -1):
            *leading, last = words[:length]
            if any((*leading, form) in self._known for form in _forms(last)):
                return length
        return 0

    def _suggestions(self, word: str) -> tuple[str, ...]:
        near = difflib.get_close_matches(
            word, self._concepts_of, n=_SUGGESTION_COUNT, cutoff=_SIMILARITY
        )
        names = dict.fromkeys(name for match in near for name in self._concepts_of[match])
        return tuple(names)[:_SUGGESTION_COUNT]


def describe(unknown: Sequence[UnknownWord]) -> str:
    """One sentence for people about words that a model never saw; `unknown` must not be empty."""
    words = _listed([f"'{word.word}'" for word in unknown])
    verb = "was" if len(unknown) == 1 else "were"
    names = tuple(dict.fromkeys(name for word in unknown for name in word.suggestions))
    hint = (
        f"the nearest it knows by spelling: {', '.join(names[:_SUGGESTION_COUNT])}"
        if names
        else "see the model's vocabulary for what it can draw"
    )
    return f"{words} {verb} not among the words this model learned; {hint}."


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _forms(word: str) -> tuple[str, ...]:
    """The word itself, and what it may be the plural or possessive of."""
    bare = re.sub(r"['’]s?$", "", word)
    return (word, bare, f"{bare}s", *(re.sub(f"{end}$", stem, bare) for end, stem in _PLURALS))


def _names_by_word(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by each word in them that says something; the whole name counts as one too."""
    by_word: dict[str, list[str]] = {}
    for name in names:
        for word in dict.fromkeys([name.lower(), *_words(name)]):
            if word not in _STOP_WORDS:
                by_word.setdefault(word, []).append(name)
    return by_word
