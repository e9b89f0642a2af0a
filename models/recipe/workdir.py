"""Where the stages of the recipe keep what they make, so that each can go on after another.

Called by the stages and the command line. Knows names only; reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkDir:
    """Paths below `root`; checkpoints resume when they exist."""

    root: Path

    def autoencoder(self, phase: int) -> Path:
        """Checkpoint of one phase of the autoencoder's training, counted from 1."""
        return self.root / f"autoencoder-{phase}.safetensors"

    @property
    def decoder(self) -> Path:
        """Checkpoint of the decoder's last polish; absent when it was not run."""
        return self.root / "decoder.safetensors"

    @property
    def tokenizer(self) -> Path:
        """Folder of the trained tokenizer."""
        return self.root / "tokenizer"

    @property
    def text(self) -> Path:
        """Checkpoint of the pre-trained text encoder."""
        return self.root / "text.safetensors"

    @property
    def latents(self) -> Path:
        """Encoded views, float16 [drawing, view, background slot, 4, 16, 16]."""
        return self.root / "latents.npy"

    @property
    def latent_backgrounds(self) -> Path:
        """Index of the background of each coloured slot, int64 [drawing, view, slot - 1]."""
        return self.root / "latent_backgrounds.npy"

    def denoiser(self, number: int) -> Path:
        """Checkpoint of one round of the denoiser and the text encoder, counted from 1."""
        return self.root / f"denoiser-{number}.safetensors"

    @property
    def judge(self) -> Path:
        """Checkpoint of the judge."""
        return self.root / "judge" / "judge.safetensors"

    @property
    def sheets(self) -> Path:
        """Folder for contact sheets that do not ship."""
        return self.root / "sheets"
