"""Where state is kept: SQL databases, and the catalogue of trained models."""
