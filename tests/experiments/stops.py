"""A task that stops its run before the step that STOP_AT names, in every process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from matmix.experiments import Batch
from sequence.tasks.digits import Digits


@dataclass(frozen=True)
class Stops(Digits):
    def batches(self, split, batch_size, *, seed=0, start=0, rank=0, world=1) -> Iterator[Batch]:
        batches = super().batches(split, batch_size, seed=seed, start=start, rank=rank, world=world)
        for step, batch in enumerate(batches, start):
            if split == "train" and str(step) == os.environ.get("STOP_AT"):
                raise OSError("stopped")
            yield batch
