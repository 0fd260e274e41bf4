"""Tasks that run offline."""
