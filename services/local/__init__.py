"""The whole suite on one machine: `limner up` and `limner demo`.

It starts the services as processes, as they run anywhere, and talks to them over gRPC. Only this
package knows all of them.
"""
