"""Migrations of the gateway's database, run by `services.gateway.schema` when a gateway starts.

A released migration is never edited. Each one leaves a database that the version before can use, so
that replicas may be replaced one by one.
"""
