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

    @property
    def drawings(self) -> Path:
        """All drawings in one file, if they were packed."""
        return self.root / "drawings.zip"

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
        """Checkpoint of the text encoder with its codes and the head that paints."""
        return self.root / "text.safetensors"

    @property
    def translator(self) -> Path:
        """Checkpoint of the network that paints what is held out."""
        return self.root / "translator.safetensors"

    @property
    def completions(self) -> Path:
        """What it painted, in every pose."""
        return self.root / "completions.npz"

    def latents(self, number: int) -> Path:
        """One chunk of encoded pictures, counted from 0."""
        return self.root / "latents" / f"{number:03d}.npz"

    @property
    def latent_chunks(self) -> list[Path]:
        """All chunks that there are."""
        return sorted((self.root / "latents").glob("[0-9]*[0-9].npz"))

    @property
    def denoiser(self) -> Path:
        """Checkpoint of the denoiser."""
        return self.root / "denoiser.safetensors"

    @property
    def weak(self) -> Path:
        """JSON: places of drawings that are shown more often, if they were looked for."""
        return self.root / "weak.json"

    @property
    def curve(self) -> Path:
        """JSON lines: what was measured while the denoiser learned."""
        return self.root / "curve.jsonl"

    def snapshot(self, sample_count: int) -> Path:
        """Averaged weights, float16, after so many samples."""
        return self.root / "snapshots" / f"{sample_count:010d}.safetensors"

    @property
    def snapshots(self) -> list[Path]:
        """All snapshots, oldest first."""
        return sorted((self.root / "snapshots").glob("*[0-9].safetensors"))

    @property
    def control(self) -> Path:
        """Checkpoint of the ControlNet."""
        return self.root / "control.safetensors"

    @property
    def judge(self) -> Path:
        """Checkpoint of the judge."""
        return self.root / "judge" / "judge.safetensors"

    @property
    def sheets(self) -> Path:
        """Folder for contact sheets that do not ship."""
        return self.root / "sheets"
