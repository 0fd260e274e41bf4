"""Readers, generators and the cache of the sequence tasks' data."""
