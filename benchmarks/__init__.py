"""The peers side by side with Limner, in one run each: `python -m benchmarks.NAME`."""
