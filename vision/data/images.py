"""Decoded, cut and coloured images whose every random choice follows from a number that comes with the index.

timm's loader draws augmentations from generators that run on from image to image in each worker, so what an image gets
depends on the workers and on all images before it. Here each image has a seed of its own: any number of workers or
processes, and a training that goes on after a kill, give the same bits.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vision.data.decoding import BadData, BrokenImage, decoding, in_colour
from vision.data.source import Source

MODES = {1: "L", 3: "RGB"}


@dataclass(eq=False)
class Images:
    """Some images of a source.

    Args:
        reader: the source.
        indices: which of its images.
        channels: 3 (colour) or 1 (grey); what a file has besides (an alpha channel, a palette) is converted.
        shrink: short side, in pixels, to which images are reduced once and then held in memory; 0 reads files anew.
    """

    reader: Source
    indices: Sequence[int]
    channels: Literal[1, 3] = 3
    shrink: int = 0
    broken: list[str] = field(default_factory=list)
    """Names of the images that `skip_broken` left out."""

    def __post_init__(self) -> None:
        labels = self.reader.labels()
        self.targets = torch.tensor([labels[index] for index in self.indices], dtype=torch.long)
        self.held: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, position: int) -> Image.Image:
        """The image at a position, decoded.

        Raises:
            BrokenImage: with the name of the file.
        """
        if self.held:
            return Image.fromarray(self.held[position])
        index = self.indices[position]
        mode = MODES[self.channels]
        with (
            decoding(self.reader.filename(index)),
            self.reader[index][0] as file,
            Image.open(file) as opened,
        ):
            return _shrunk(in_colour(opened, mode), self.shrink)

    def skip_broken(self) -> None:
        """Read everything once and leave out what cannot be read."""
        good, self.broken = readable(self)
        if self.broken:
            self.indices = [self.indices[at] for at in good]
            self.targets = self.targets[good]

    def hold(self) -> None:
        """Decode everything and keep it in memory."""
        with _threads() as pool:
            self.held = list(pool.map(lambda position: np.asarray(self.read(position)), range(len(self))))


class Readable(Protocol):
    """Things by position, such as `Images` or pairs of image and mask."""

    def __len__(self) -> int: ...

    def read(self, position: int, /) -> object: ...


def readable(images: Readable) -> tuple[list[int], list[str]]:
    """Read everything once: the positions that can be read, and the names of those that cannot.

    Raises:
        BadData: where nothing can be read.
    """

    def why_not(position: int) -> BrokenImage | None:
        try:
            images.read(position)
        except BrokenImage as error:
            return error
        return None

    with _threads() as pool:
        errors = list(pool.map(why_not, range(len(images))))
    good = [at for at, error in enumerate(errors) if error is None]
    if errors and not good:
        raise BadData(f"data: none of {len(errors)} images can be read; the first: {str(errors[0])[6:]}")
    return good, [error.file for error in errors if error is not None]


def skipped(split: str, count: int, broken: list[str]) -> None:
    """Say which images of a split are left out."""
    if broken:
        names = ", ".join(broken[:5]) + (", ..." if len(broken) > 5 else "")
        warnings.warn(f"{split}: {len(broken)} of {count} images are left out: {names}", stacklevel=3)


@dataclass
class Share:
    """The part of one batch that a process makes: positions, and a seed for each and for the batch."""

    positions: list[int]
    seeds: list[int]
    seed: int = 0


@dataclass(eq=False)
class Transformed(torch.utils.data.Dataset):
    """Shares of batches as tensors (B, channels, height, width) and targets."""

    images: Images
    transform: Callable[[Image.Image], Tensor]
    mix: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None
    """Gets the images, their labels and the seed of the batch."""

    def __getitems__(self, share: Share) -> tuple[Tensor, Tensor]:
        found = []
        with kept_generators():
            for position, seed in zip(share.positions, share.seeds, strict=True):
                seed_all(seed)
                found.append(self.transform(self.images.read(position)))
        x, y = torch.stack(found), self.images.targets[share.positions]
        return (x, y) if self.mix is None else self.mix(x, y, share.seed)


@contextmanager
def kept_generators() -> Iterator[None]:
    """The generators that transforms draw from stand afterwards where they stood before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    if not side or min(width, height) <= side:
        image.load()
        return image
    scale = side / min(width, height)
    return image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="decode")  # Pillow decodes without the interpreter's lock
