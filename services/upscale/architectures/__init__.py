"""Upscaling networks as plain torch modules with the names of the published weights."""
