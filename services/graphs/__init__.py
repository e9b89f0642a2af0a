"""Component graphs of a model, and the runtimes that they run on.

Shared by the services that own a device; knows none of them.
"""
