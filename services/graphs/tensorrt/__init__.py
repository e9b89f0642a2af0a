"""Graphs as TensorRT engines: built anywhere, run on an NVIDIA GPU.

`store.EngineStore` keeps engines by what they were made from, `build` makes them, `graph` runs
them, `precision` puts a component into the number format that its engine shall compute in. No other
package imports TensorRT. Building was tried without a GPU; running an engine was not tried yet.
"""
