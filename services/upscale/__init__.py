"""Upscales pictures: descriptors of models, the shared tile batcher, the server."""
