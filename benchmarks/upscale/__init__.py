"""Upscaling pictures of mixed sizes: Limner's tile batcher beside the ncnn wheel and torch."""
