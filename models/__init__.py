"""Shipped models and the recipes that make them."""
