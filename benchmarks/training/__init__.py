"""Training at the size of Stable Diffusion 1.5: Limner beside diffusers' DreamBooth scripts."""
