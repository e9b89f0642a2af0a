"""Limner: the services, one package each."""
