"""Image tasks for `matmix train`, `matmix study` and `matmix evaluate`."""
