"""What every Limner process needs: server, errors, request context, metrics, logs, settings.

Imported by the services; knows none of them.
"""
