"""The versions of the gateway's schema, oldest first; read by alembic."""
