from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import CLIPTokenizer

from services.diffusion.conditioning import PromptTokenizer, TextConditioner
from services.diffusion.model import LoadedModel
from tests.diffusion.tiny import TOKEN_WINDOW, write_tokenizer

Load = Callable[[Path], LoadedModel]


@pytest.fixture(scope="module")
def stock_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(stock_tokenizer: CLIPTokenizer) -> PromptTokenizer:
    return PromptTokenizer(stock_tokenizer, window=TOKEN_WINDOW)


class CountingEncoder:
    """Turns ids into embeddings (1, L, 2) and counts its runs."""

    runtime = "counting"

    def __init__(self) -> None:
        self.run_count = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.run_count += 1
        return inputs[0].float()[..., None].repeat(1, 1, 2)


def conditioner(tokenizer: PromptTokenizer, encoder: CountingEncoder, **bounds: int):
    return TextConditioner(tokenizer, encoder, revision="r", device="cpu", **bounds)


@given(st.text(max_size=40))
@settings(deadline=None)
def test_ids_are_those_of_the_stock_tokenizer(
    stock_tokenizer: CLIPTokenizer, tokenizer: PromptTokenizer, prompt: str
) -> None:
    ours = tokenizer.ids(prompt)
    # A tokenizer of its own: padding and truncation are state.
    expected = CLIPTokenizer(
        vocab=stock_tokenizer.get_vocab(), merges=[], model_max_length=TOKEN_WINDOW
    )(prompt, padding="max_length", max_length=TOKEN_WINDOW, truncation=True)

    assert ours == expected.input_ids


def test_text_that_does_not_fit_is_given_back_in_whole_words(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.cut_text("short one") == ""
    assert tokenizer.cut_text("abcdefg hijklmn") == ""
    assert tokenizer.cut_text("abcdefg hijklmno pq") == "hijklmno pq"


def test_many_threads_may_use_the_tokenizer_at_once(tokenizer: PromptTokenizer) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def work(index: int) -> None:
        try:
            start.wait()
            for round_ in range(50):
                prompt = f"prompt {index} {round_}"
                assert len(tokenizer.ids(prompt)) == TOKEN_WINDOW
                tokenizer.cut_text(prompt * 3)
        except BaseException as error:  # collected for the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []


def test_a_prompt_is_encoded_once(tokenizer: PromptTokenizer) -> None:
    encoder = CountingEncoder()
    subject = conditioner(tokenizer, encoder)

    first = subject.encode(["cat", "dog", "cat"])
    second = subject.encode(["dog"])

    assert encoder.run_count == 2
    assert first.shape == (3, TOKEN_WINDOW, 2)
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], second[0])


def test_results_do_not_share_memory_with_the_cache(tokenizer: PromptTokenizer) -> None:
    subject = conditioner(tokenizer, CountingEncoder())
    original = subject.encode(["cat"]).clone()

    subject.encode(["cat"]).zero_()

    assert torch.equal(subject.encode(["cat"]), original)


def test_the_cache_drops_the_least_recently_used_beyond_its_count(
    tokenizer: PromptTokenizer,
) -> None:
    encoder = CountingEncoder()
    subject = conditioner(tokenizer, encoder, max_cached_prompts=2)

    subject.encode(["a", "b", "a", "c"])
    assert len(subject) == 2
    subject.encode(["a"])
    assert encoder.run_count == 3
    subject.encode(["b"])
    assert encoder.run_count == 4


def test_the_cache_stays_within_its_bytes(tokenizer: PromptTokenizer) -> None:
    one = TOKEN_WINDOW * 2 * 4
    subject = conditioner(tokenizer, CountingEncoder(), max_cached_bytes=3 * one)

    subject.encode([str(number) for number in range(10)])

    assert len(subject) == 3
    assert subject.cached_bytes == 3 * one


def test_an_embedding_does_not_depend_on_its_neighbours(load: Load, emoji_folder: Path) -> None:
    together = load(emoji_folder).encode_prompts(["rocket", "a dog face", ""])

    alone = load(emoji_folder).encode_prompts(["a dog face"])

    assert torch.equal(together[1], alone[0])
