"""Component graphs of a model, and the runtimes that they run on."""
