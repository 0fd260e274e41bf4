"""Studies of sequence mixers by name: `matmix study lra`, `mad`, `states`, `lra-mini`, `forecast`."""
