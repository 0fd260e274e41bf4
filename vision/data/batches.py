"""The order of images, and what is mixed with what.

A batch follows from (seed, step); process `rank` of `world` makes a run of neighbours in it. Images are mixed in pairs
of neighbours (0 with 1, 2 with 3, ...), so that a pair is never divided between processes or accumulated parts. timm's
`Mixup` pairs the first of what one process holds with the last: there the loss depends on the number of processes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from timm.data.mixup import cutmix_bbox_and_lam
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, Dataset

from matmix.sampling import once, order, stream
from vision.data.decoding import BadData
from vision.data.images import Share


@dataclass(frozen=True)
class Mix:
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), one of the two for a batch, and label smoothing.

    Args:
        classes: their number.
        mixup, cutmix: parameter of the beta distribution of the share; 0 = off. With both on, each takes half of the
            batches.
        smoothing: part of the target that is spread over all classes.
    """

    classes: int
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0

    def __call__(self, x: Tensor, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, h, w) and labels (B,) to mixed images and soft targets (B, classes)."""
        target = one_hot(y, self.classes) * (1 - self.smoothing) + self.smoothing / self.classes
        if not (self.mixup or self.cutmix):
            return x, target
        if len(x) % 2:
            raise ValueError(f"mixup and cutmix need an even number of images in each process, got {len(x)}")
        random = np.random.default_rng(seed)
        cut = self.cutmix > 0 and (self.mixup == 0 or random.random() < 0.5)
        share = _beta(random, self.cutmix if cut else self.mixup)
        partner = torch.arange(len(x)) ^ 1
        if cut:
            (top, bottom, left, right), share = _box(x.shape, share, random)
            mixed = x.clone()
            mixed[:, :, top:bottom, left:right] = x[partner, :, top:bottom, left:right]
        else:
            mixed = x.lerp(x[partner], 1 - share)
        return mixed, target.lerp(target[partner], 1 - share)


def _beta(random: np.random.Generator, parameter: float) -> float:
    return float(random.beta(parameter, parameter))


def _box(shape: Any, share: float, random: np.random.Generator) -> tuple[tuple[int, int, int, int], float]:
    """timm's box for the share that stays, and the share that does stay; timm draws from numpy's global generator."""
    before = np.random.get_state()
    np.random.seed(int(random.integers(2**32)))
    try:
        box, share = cutmix_bbox_and_lam(shape, share)
    finally:
        np.random.set_state(before)
    top, bottom, left, right = (int(edge) for edge in box)
    return (top, bottom, left, right), float(share)


def training_shares(
    n: int, batch_size: int, *, seed: int, start: int = 0, rank: int = 0, world: int = 1, repeats: int = 1
) -> Iterator[Share]:
    """The shares of process `rank` from step `start` on, without end.

    With `repeats` a batch holds each of its images so many times, differently augmented (repeated augmentation, arXiv
    1901.09335); copies stand far apart, so they are not mixed with each other. An epoch then takes more steps.
    """
    if batch_size % (repeats * world):
        raise ValueError(f"batch_size={batch_size} must divide by {repeats} repeats x {world} processes")
    share = batch_size // world
    for step, different in enumerate(order(n, batch_size // repeats, seed=seed, start=start), start):
        places = range(rank * share, (rank + 1) * share)
        positions, of_batch = different.repeat(repeats)[rank * share : (rank + 1) * share].tolist(), stream(seed, step)
        yield Share(positions, [stream(of_batch, place) for place in places], of_batch)


def evaluation_shares(n: int, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[Share]:
    """Every image once over all ranks."""
    for positions in once(n, batch_size, rank=rank, world=world):
        yield Share(positions.tolist(), [0] * len(positions))


class Loaded(Protocol):
    """Makes the tensors of a share: `Transformed`, or pairs of image and mask."""

    @property
    def images(self) -> Any:
        """With `held`, what stands decoded in memory."""

    def __getitems__(self, share: Share, /) -> tuple[Tensor, Tensor]: ...


@dataclass(eq=False)
class _InWords(Dataset):
    """What is wrong with the data as a result: raised in a worker, it would come with a traceback in its words."""

    dataset: Loaded

    def __getitems__(self, share: Share) -> tuple[Tensor, Tensor] | BadData:
        try:
            return self.dataset.__getitems__(share)
        except BadData as error:
            return error


def load(dataset: Loaded, shares: Iterator[Share]) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of each share, in order, made in worker processes where files have to be decoded.

    Their number is that of the cores for each process (8 at most), or `MATMIX_WORKERS`; it never changes the result.
    """
    workers = 0 if dataset.images.held else _workers()
    loader = DataLoader(
        _InWords(dataset),
        batch_sampler=shares,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_same,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise it draws from the one that dropout draws from
        worker_init_fn=_own_signals,
        prefetch_factor=4 if workers else None,
    )
    for made in loader:
        if isinstance(made, BadData):
            raise made
        yield made


def _own_signals(worker: int) -> None:
    """Ctrl-C is the trainer's: it finishes its step, for which it needs its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _workers() -> int:
    wanted = os.environ.get("MATMIX_WORKERS")
    if wanted is not None:
        return int(wanted)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _same(batch: Any) -> Any:
    return batch
