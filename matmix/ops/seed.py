"""Named random streams: what one part draws never moves what another part draws."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fork_seed(seed: int, name: str) -> Iterator[None]:
    """Inside, torch's generators start from (seed, name); after it they stand where they stood before.

    A study that replaces one mixer builds it under its own name, so all other weights are bit-identical.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    # Where CUDA is the default device, what is built here may be the first to draw there.
    there = torch.cuda.is_initialized() or torch.get_default_device().type == "cuda"
    devices = list(range(torch.cuda.device_count())) if there else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int.from_bytes(digest[:7], "little"))
        yield
