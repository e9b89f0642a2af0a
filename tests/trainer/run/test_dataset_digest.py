"""A dataset's digest names it and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.run.dataset import Picture, dataset_digest

_DIGESTS = [character * 64 for character in "0f"]


def _pictures(*listed: tuple[str, str | None]) -> list[Picture]:
    return [Picture(path=Path("p"), digest=each, caption=caption) for each, caption in listed]


def test_a_caption_of_several_lines_is_not_taken_for_several_pictures() -> None:
    zeros, fs = _DIGESTS
    one = dataset_digest(_pictures((zeros, f"a dog\n{fs} a cat")))
    assert one != dataset_digest(_pictures((zeros, "a dog"), (fs, "a cat")))
    assert one != dataset_digest(_pictures((zeros, f"a dog\n {fs} a cat")))


@given(
    *[
        st.lists(st.tuples(st.sampled_from(_DIGESTS), st.text("\n f", min_size=1)), max_size=3)
        for _ in range(2)
    ]
)
def test_other_pictures_or_captions_have_another_digest(
    some: list[tuple[str, str]], others: list[tuple[str, str]]
) -> None:
    equal = dataset_digest(_pictures(*some)) == dataset_digest(_pictures(*others))
    assert equal is (some == others)


def test_without_such_captions_the_digest_is_that_of_earlier_releases() -> None:
    zeros, fs = _DIGESTS
    text = f"{zeros} a dog, \\ and é\n{fs} \n"
    pictures = _pictures((zeros, "a dog, \\ and é"), (fs, None))
    assert dataset_digest(pictures) == hashlib.sha256(text.encode()).hexdigest()
