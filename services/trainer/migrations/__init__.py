"""The versions of the trainer's schema."""
