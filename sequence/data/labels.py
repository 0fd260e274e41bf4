"""The one label that means none."""

IGNORED = -100
"""Stands where nothing is scored; PyTorch's losses leave it out."""
