"""The codes: one token a name, computed from drawings while training, a table afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.recipe.codes import ConceptEmbedding
from models.recipe.tokenizer import NO_CONCEPT

WIDTH, WORD_COUNT = 6, 3
OWNERS = torch.tensor([NO_CONCEPT] * WORD_COUNT + [0, 1, 0, 2])
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


@pytest.fixture
def codes() -> ConceptEmbedding:
    torch.manual_seed(0)
    return ConceptEmbedding(WIDTH, OWNERS, torch.randn(3, 3, 8), PRESENT)


def test_words_have_rows_and_names_of_one_thing_share_a_code(codes: ConceptEmbedding) -> None:
    embeddings = codes(torch.tensor([[0, 3, 5], [2, 4, 6]]))
    assert embeddings.shape == (2, 3, WIDTH)
    assert torch.equal(embeddings[:, 0], codes.words.weight[[0, 2]])
    assert torch.equal(embeddings[0, 1], embeddings[0, 2])
    assert not torch.equal(embeddings[1, 1], embeddings[1, 2])


def test_the_table_says_what_was_computed(codes: ConceptEmbedding) -> None:
    table = codes.baked()
    assert isinstance(table, nn.Embedding)
    tokens = torch.arange(len(OWNERS))[None]
    assert torch.allclose(table(tokens), codes(tokens), atol=1e-6)


def test_a_drawing_that_is_not_there_does_not_show(codes: ConceptEmbedding) -> None:
    before = codes(torch.tensor([[4]]))
    codes.pictures_KSF[1, 1] += 5.0
    assert torch.equal(codes(torch.tensor([[4]])), before)
    codes.pictures_KSF[1, 2] += 5.0
    assert not torch.equal(codes(torch.tensor([[4]])), before)


def test_the_map_learns_with_the_words(codes: ConceptEmbedding) -> None:
    loss: Tensor = codes(torch.tensor([[0, 3]])).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    for parameter in (codes.words.weight, codes.encode.weight, codes.presence.weight):
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0.0


def test_names_that_stand_before_words_are_refused() -> None:
    with pytest.raises(ValueError, match="after all words"):
        ConceptEmbedding(
            WIDTH, torch.tensor([NO_CONCEPT, 0, NO_CONCEPT]), torch.zeros(1, 3, 8), PRESENT[:1]
        )
