"""Images with a class for every pixel, and how pairs of image and mask are cut for training and evaluation.

A mask is a file of one channel (grey or palette, PNG) whose values are class indices; 255 is not counted. Image and
mask have the same name but for the ending. Either layout is read::

    train/images  train/masks  val/images  val/masks  [test/...]
    images/train  masks/train  images/val  masks/val  [...]        (ADE20K: images/training, annotations/training)

or `images` and `masks` alone, without splits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions
from torch import Tensor
from torchvision.transforms import ColorJitter
from torchvision.transforms.functional import to_tensor

from matmix.experiments.task import Split
from vision.data.images import BrokenImage, Share, kept_generators, seed_all
from vision.data.sources import NAMES

IGNORED = 255
MASKS = ("masks", "annotations", "labels")
Opened = tuple[Image.Image, Image.Image]


@dataclass(eq=False)
class Pairs:
    """Images and masks by file.

    Args:
        files: image and mask of each pair.
        ignore_zero: 0 in a mask means "no class", and classes count from 1 (ADE20K).
    """

    files: Sequence[tuple[Path, Path]]
    ignore_zero: bool = False
    held: list[np.ndarray] = field(default_factory=list)  # nothing is held in memory; what `load` asks for

    def __len__(self) -> int:
        return len(self.files)

    def read(self, position: int) -> Opened:
        """Image (RGB) and mask (L, 255 = not counted) at a position.

        Raises:
            BrokenImage: with the name of the file, for one that cannot be read or a mask that is none of its image.
        """
        path = self.files[position][0]
        image = _opened(path, "RGB")
        mask = self.mask(position)
        if mask.size != image.size:
            raise BrokenImage(f"data: {path} is {image.size} pixels wide and high, its mask {mask.size}")
        return image, mask

    def mask(self, position: int) -> Image.Image:
        """The mask at a position."""
        mask = _opened(self.files[position][1], "L")
        if self.ignore_zero:
            values = np.asarray(mask)
            mask = Image.fromarray(np.where(values == 0, IGNORED, values - 1).astype(np.uint8))
        return mask

    def counts(self, most: int | None = None) -> np.ndarray:
        """How many pixels each of 256 values has in at most so many masks, evenly spread."""
        places = (
            range(len(self)) if most is None or most >= len(self) else np.linspace(0, len(self) - 1, most, dtype=int)
        )
        return sum((np.bincount(np.asarray(self.mask(at)).ravel(), minlength=256) for at in places), np.zeros(256, int))


def _opened(path: Path, mode: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            if mode == "L":
                if image.mode not in ("L", "P", "1"):
                    raise ValueError(f"its mode is {image.mode!r}; a mask has one channel of 8 bits, the class indices")
                # Indices as they are: a conversion of a palette would give grey levels of its colours.
                return Image.fromarray(np.asarray(image).astype(np.uint8))
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its mode is {image.mode!r}, which is no image of 8 bits a channel")
            return image.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BrokenImage(f"data: {path} cannot be read: {error}") from error


@cache
def pairs(data: str) -> dict[Split, tuple[tuple[Path, Path], ...]]:
    """The pairs of every split of a folder.

    Raises:
        ValueError: for a folder that is not there or in neither layout, an image without a mask, a mask without one.
    """
    root = Path(data).expanduser()
    if not data or not root.is_dir():
        raise ValueError(f"data: there is no folder {data!r}; name one with images and masks: --data PATH")
    found: dict[Split, tuple[tuple[Path, Path], ...]] = {}
    for split, names in NAMES.items():
        for name in names:
            for images, above in ((root / name / "images", root / name), (root / "images" / name, root)):
                masks = [above / kind / name if above == root else above / kind for kind in MASKS]
                if images.is_dir() and split not in found:
                    found[split] = _matched(images, masks)
    if not found and (root / "images").is_dir():
        found["train"] = _matched(root / "images", [root / kind for kind in MASKS])
    if "train" not in found:
        raise ValueError(f"data: {root} has no train/images, images/train or images, with masks beside them")
    return found


def _matched(images: Path, masks: list[Path]) -> tuple[tuple[Path, Path], ...]:
    folder = next((path for path in masks if path.is_dir()), None)
    if folder is None:
        raise ValueError(f"data: {images} has no masks: there is none of {', '.join(map(str, masks))}")
    kinds = get_img_extensions(as_set=True)

    def by_name(below: Path) -> dict[str, Path]:
        files = sorted(path for path in below.rglob("*") if path.suffix.lower() in kinds and path.is_file())
        return {str(path.relative_to(below).with_suffix("")): path for path in files}

    pictures, targets = by_name(images), by_name(folder)
    for one, other, what in ((pictures, targets, "no mask in"), (targets, pictures, "no image in")):
        lonely = [str(path) for name, path in one.items() if name not in other]
        if lonely:
            rest = f" and {len(lonely) - 3} more" if len(lonely) > 3 else ""
            raise ValueError(f"data: {', '.join(lonely[:3])}{rest}: {what} {folder if one is pictures else images}")
    if not pictures:
        raise ValueError(f"data: {images} holds no image ({', '.join(sorted(kinds))})")
    return tuple((path, targets[name]) for name, path in pictures.items())


@dataclass(frozen=True)
class Cut:
    """A square of `size` pixels out of a pair, as tensors (3, size, size) and (size, size).

    In training the short side is brought to `size` times a random number from `scale`, a random square is cut out
    (what lies outside is black and not counted), mirrored with probability `flip`, its colours jittered. Otherwise the
    long side is brought to `size`, and the rest of the square is not counted.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: bool = False
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    color_jitter: float = 0.0

    def __call__(self, pair: Opened) -> tuple[Tensor, Tensor]:
        image, mask = pair
        ratio = random.uniform(*self.scale) * self.size / min(image.size) if self.train else self.size / max(image.size)
        width, height = (max(1, round(side * ratio)) for side in image.size)
        image, mask = (
            image.resize((width, height), Image.Resampling.BILINEAR),
            mask.resize((width, height), Image.Resampling.NEAREST),
        )
        left, top = 0, 0
        if self.train:
            left, top = (
                random.randint(min(0, spare), max(0, spare)) for spare in (width - self.size, height - self.size)
            )
        box = (left, top, left + self.size, top + self.size)
        there = Image.new("L", (width, height), 255).crop(box)  # 0 outside
        image, mask = image.crop(box), Image.composite(mask.crop(box), Image.new("L", there.size, IGNORED), there)
        if self.train and self.color_jitter:
            strength = self.color_jitter
            image = ColorJitter(strength, strength, strength, min(0.5, strength / 4))(image)
        x = (to_tensor(image) - torch.tensor(self.mean).view(-1, 1, 1)) / torch.tensor(self.std).view(-1, 1, 1)
        x = x.masked_fill(torch.from_numpy(np.array(there)) == 0, 0)
        y = torch.from_numpy(np.array(mask)).long()
        if self.train and random.random() < self.flip:
            x, y = x.flip(-1), y.flip(-1)
        return x, y


@dataclass(eq=False)
class CutPairs(torch.utils.data.Dataset):
    """Shares of batches as tensors (B, 3, size, size) and (B, size, size)."""

    images: Pairs
    cut: Callable[[Opened], tuple[Tensor, Tensor]]
    classes: int = IGNORED

    def __getitems__(self, share: Share) -> tuple[Tensor, Tensor]:
        found = []
        with kept_generators():
            for position, seed in zip(share.positions, share.seeds, strict=True):
                seed_all(seed)
                x, y = self.cut(self.images.read(position))
                largest = int(y.masked_fill(y == IGNORED, 0).max())
                if largest >= self.classes:
                    raise ValueError(
                        f"data: {self.images.files[position][1]} has the class {largest}, the last of {self.classes} "
                        f"is {self.classes - 1}"
                    )
                found.append((x, y))
        return torch.stack([x for x, _ in found]), torch.stack([y for _, y in found])
