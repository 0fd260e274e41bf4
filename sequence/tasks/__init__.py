"""Sequence tasks that run offline."""
