"""Stable Diffusion 1.x: CLIP text encoder, UNet with cross-attention, image autoencoder."""

from services.diffusion.families.sd1.model import load
from services.diffusion.families.sd1.sources import engine_sources

__all__ = ["engine_sources", "load"]
