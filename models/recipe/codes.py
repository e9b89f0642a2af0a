"""What the text encoder knows of each thing: one token, whose embedding is a code of its drawings.

Called by the stages that train text encoder and denoiser, and by `export`. While these learn, a
thing's embedding is computed from the latents of its drawings by a linear map that they share, so
that what one thing teaches serves all others. `bake` writes the codes into an ordinary
embedding; the latents and the map do not ship. Legend: B batch, L tokens, V vocabulary, K concepts,
S styles, F numbers of one latent, D text width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from models.recipe.captions import STYLES
from models.recipe.dataset import Dataset
from models.recipe.latents import EncodedPictures, kind_of
from models.recipe.tokenizer import NO_CONCEPT

WIDTH = 0.3
"""Standard deviation of a fresh code."""


class ConceptEmbedding(nn.Module):
    """Stands for the token embedding: words have a row each, names are computed."""

    owners_V: Tensor
    present_KS: Tensor
    pictures_KSF: Tensor

    def __init__(
        self, width: int, owners_V: Tensor, pictures_KSF: Tensor, present_KS: Tensor
    ) -> None:
        """Codes start as the main components of all drawings.

        `owners_V` is the concept that a token names, or -1. `pictures_KSF` are scaled latents;
        where `present_KS` is false they are not looked at.
        """
        super().__init__()
        word_count = int((owners_V == NO_CONCEPT).sum())
        if not bool((owners_V[:word_count] == NO_CONCEPT).all()):
            raise ValueError("names must come after all words in the vocabulary")
        self.words = nn.Embedding(word_count, width)
        nn.init.normal_(self.words.weight, std=0.02)
        shape_KSF = pictures_KSF.shape
        # Sized so that a step of the optimizer moves a code about as far as it moves a word.
        unit = (shape_KSF[1] * shape_KSF[2]) ** 0.5
        self.register_buffer("owners_V", owners_V, persistent=False)
        self.register_buffer("present_KS", present_KS, persistent=False)
        self.register_buffer("pictures_KSF", pictures_KSF / unit, persistent=False)
        self.encode = nn.Linear(shape_KSF[1] * shape_KSF[2], width)
        self.presence = nn.Linear(shape_KSF[1], width, bias=False)
        nn.init.zeros_(self.presence.weight)
        self._start_from_components()

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Embeddings [B, L, D]."""
        owners_BL = self.owners_V[tokens_BL]
        words_BLD = self.words(tokens_BL.clamp(max=self.words.num_embeddings - 1))
        rows, places = (owners_BL != NO_CONCEPT).nonzero(as_tuple=True)
        concepts = owners_BL[rows, places]
        codes = self._codes(concepts, self.present_KS[concepts])
        embeddings_BLD: Tensor = words_BLD.clone()
        embeddings_BLD[rows, places] = codes.to(words_BLD.dtype)
        return embeddings_BLD

    @torch.no_grad()
    def baked(self) -> nn.Embedding:
        """The same as a table with a row a token."""
        concepts = self.owners_V[self.words.num_embeddings :]
        codes = self._codes(concepts, self.present_KS[concepts])
        rows_VD = torch.cat([self.words.weight, codes])
        return nn.Embedding(len(rows_VD), rows_VD.shape[1], _weight=rows_VD)

    def _codes(self, concepts: Tensor, shown_S: Tensor) -> Tensor:
        pictures = self.pictures_KSF[concepts] * shown_S[..., None]
        codes: Tensor = self.encode(pictures.flatten(1)) + self.presence(shown_S.float())
        return codes

    @torch.no_grad()
    def _start_from_components(self) -> None:
        """Principal components, the strong ones tamed, in a random basis."""
        shown = self.pictures_KSF * self.present_KS[..., None]
        inputs_KN = shown.flatten(1)
        centred = inputs_KN - inputs_KN.mean(0)
        _, strengths, components = torch.linalg.svd(centred, full_matrices=False)
        width = self.encode.out_features
        kept = min(width, int((strengths > 1e-6 * strengths[0]).sum()))
        weights = torch.zeros_like(self.encode.weight)
        tamed = strengths[:kept].rsqrt()
        weights[:kept] = components[:kept] * tamed[:, None]
        generator = torch.Generator().manual_seed(0)
        basis, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
        weights = basis.to(weights) @ weights
        size = (centred @ weights.T).std() + 1e-6
        self.encode.weight.copy_(weights * (WIDTH / size))
        self.encode.bias.copy_(-(self.encode.weight @ inputs_KN.mean(0)))


def build_codes(
    dataset: Dataset, encoded: EncodedPictures, scale: float, owners_V: Tensor, width: int
) -> ConceptEmbedding:
    """Codes by the centred plain picture of every drawing, or by its completion."""
    latents = encoded.latents
    shape = (len(dataset.concepts), len(STYLES))
    pictures = torch.zeros(*shape, latents[0].numel())
    present = torch.zeros(shape, dtype=torch.bool)
    for row, index in enumerate(encoded.drawings):
        drawing = dataset.drawings[index]
        if encoded.poses[row] != 0 or kind_of(encoded.scenes[row]) != "plain":
            continue
        place = drawing.concept_index, STYLES.index(drawing.style)
        pictures[place] = latents[row].float().flatten() * scale
        present[place] = True
    return ConceptEmbedding(width, owners_V, pictures, present)


def attach(encoder: CLIPTextModel, codes: ConceptEmbedding) -> None:
    """Have `encoder` compute its embeddings by `codes`."""
    encoder.embeddings.token_embedding = codes  # type: ignore[assignment]


def codes_of(encoder: CLIPTextModel) -> ConceptEmbedding:
    """The codes that were attached; TypeError when there are none."""
    codes = encoder.embeddings.token_embedding
    if not isinstance(codes, ConceptEmbedding):
        raise TypeError("no codes are attached to this text encoder")
    return codes


def bake(encoder: CLIPTextModel) -> None:
    """Replace the attached codes by the ordinary embedding that they amount to."""
    encoder.embeddings.token_embedding = codes_of(encoder).baked()
