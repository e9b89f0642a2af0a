"""The versions of the trainer's schema, oldest first; read by alembic."""
