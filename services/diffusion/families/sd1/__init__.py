"""Stable Diffusion 1.x: CLIP text encoder, UNet with cross-attention, image autoencoder."""

from services.diffusion.families.sd1.model import load

__all__ = ["load"]
