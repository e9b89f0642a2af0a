"""Weights of upscalers: where they are, what they are, and how the published ones are converted."""
