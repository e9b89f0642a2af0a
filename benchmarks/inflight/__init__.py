"""In-flight batching beside what a user would build with diffusers; see `__main__`."""
