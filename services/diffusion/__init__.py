"""The diffusion service: prompts to pictures, batched in flight."""
