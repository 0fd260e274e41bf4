"""Images with a class for every pixel, and how pairs of image and mask are cut for training and evaluation.

A mask is a file of one channel (grey or palette, PNG) whose values are class indices; 255 is not counted. Of other
values, such as 0 and 255, one says so (`mask_values`); in a JPEG, whose values blur, each pixel then takes the nearest.
Image and mask have the same name but for the ending. Either layout is read::

    train/images  train/masks  val/images  val/masks  [test/...]
    images/train  masks/train  images/val  masks/val  [...]        (ADE20K: images/training, annotations/training)

or `images` and `masks` alone, without splits. Names count in any case, and as `vision.data.folders` says.

Photos and masks are turned as the orientation in their own EXIF says, as people saw them when they drew the masks and
as OpenCV (so mmsegmentation) reads them; image and mask must then be of one size.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import ColorJitter
from torchvision.transforms.functional import to_tensor

from matmix.arguments import checking_arguments
from matmix.experiments.task import Split
from matmix.ranges import Place
from vision.data.decoding import BadData, BrokenImage, decoding, in_colour, open_file, shown, turned
from vision.data.folders import (
    apart,
    files_below,
    files_in,
    listed,
    only,
    split_folders,
    splits_option,
    subfolders,
    where_missing,
)
from vision.data.images import Share, kept_generators, seed_all

IGNORED = 255
IMAGES = ("images", "image", "imgs", "img", "photos")
MASKS = ("masks", "mask", "annotations", "annotation", "labels", "label", "segmentations", "segmentation")
LOSSY = ("JPEG", "MPO")
Opened = tuple[Image.Image, Image.Image]


@dataclass(eq=False)
class Pairs:
    """Images and masks by file.

    Args:
        files: image and mask of each pair.
        ignore_zero: 0 in a mask means "no class", and classes count from 1 (ADE20K).
        values: the values in masks that stand for the classes 0, 1, ...; () = they are the classes.
        exif: turn files as their EXIF orientation says.
    """

    files: Sequence[tuple[Path, Path]]
    ignore_zero: bool = False
    values: tuple[int, ...] = ()
    exif: bool = True
    held: list[np.ndarray] = field(default_factory=list)  # nothing is held in memory; what `load` asks for

    def __len__(self) -> int:
        return len(self.files)

    def read(self, position: int) -> Opened:
        """Image (RGB) and mask (L, 255 = not counted) at a position.

        Raises:
            BrokenImage: with the name of the file, for one that cannot be read or a mask that is none of its image.
        """
        path, of_mask = self.files[position]
        with decoding(str(path)), open_file(path) as file, Image.open(file) as opened:
            upright = turned(opened) if self.exif else opened
            image, turns = in_colour(upright, "RGB"), upright.size != opened.size
        mask = self.mask(position)
        if mask.size != image.size:
            hint = "; its EXIF turned it: --task.no-exif takes pixels as they are stored" if turns else ""
            raise BrokenImage.of(
                str(path), f"data: {path} is {image.size} pixels wide and high, its mask {of_mask} {mask.size}{hint}"
            )
        return image, mask

    def mask(self, position: int) -> Image.Image:
        """The mask at a position."""
        path = self.files[position][1]
        with decoding(str(path)), open_file(path) as file, Image.open(file) as opened:
            if opened.mode not in ("L", "P", "1"):
                raise ValueError(f"its mode is {opened.mode!r}; a mask has one channel of 8 bits, the class indices")
            if opened.format in LOSSY and not self.values:
                raise ValueError(
                    "it is a JPEG, where values blur into others: save masks as PNG, or say which values they have, "
                    "as in --task.mask-values 0 255"
                )
            # Indices as they are: a conversion of a palette would give grey levels of its colours.
            found = np.asarray(turned(opened) if self.exif else opened).astype(np.uint8)
            if self.values:
                found = self._classes(found, nearest=opened.format in LOSSY)
            elif self.ignore_zero:
                found = np.where((found == 0) | (found == IGNORED), IGNORED, found - 1).astype(np.uint8)
        return Image.fromarray(found)

    def _classes(self, found: np.ndarray, *, nearest: bool) -> np.ndarray:
        """The classes that values stand for."""
        known, all_values = np.array(self.values), np.arange(256)
        distance = np.abs(all_values[:, None] - known)
        table = distance.argmin(1)
        if not nearest:
            table[distance.min(1) > 0] = -1
            if IGNORED not in self.values:
                table[IGNORED] = IGNORED
            strange = all_values[(np.bincount(found.ravel(), minlength=256) > 0) & (table < 0)]
            if len(strange):
                raise ValueError(f"it has the value {strange[0]}; --task.mask-values are {_words(self.values)}")
        return table[found].astype(np.uint8)

    def counts(self, most: int | None = None) -> np.ndarray:
        """How many pixels each of 256 values has in at most so many masks, evenly spread."""
        places = (
            range(len(self)) if most is None or most >= len(self) else np.linspace(0, len(self) - 1, most, dtype=int)
        )
        return sum((np.bincount(np.asarray(self.mask(at)).ravel(), minlength=256) for at in places), np.zeros(256, int))


def check_classes(counts: np.ndarray, classes: int, *, given: bool) -> None:
    """Refuse masks whose values are no classes: at most one of them, or some that never occur.

    Args:
        counts: pixels of each value in the training masks; those of 255 are not counted.
        given: whether the number of classes was said: then some may be missing.
    """
    seen = np.flatnonzero(counts[:IGNORED])
    values = [*seen.tolist(), *([IGNORED] if counts[IGNORED] else [])]
    say = "if those stand for the classes 0, 1, ..., say so: --task.mask-values " + " ".join(map(str, values[:8]))
    ignored = ", which is not counted" if counts[IGNORED] else ""
    if len(seen) == 0:
        raise ValueError(f"data: no training mask has a pixel that counts; all values are {IGNORED}")
    if len(seen) == 1:
        raise ValueError(f"data: the training masks have the values {_words(values)}{ignored}: a single class; {say}")
    absent = sorted(set(range(classes)) - set(seen.tolist()))
    if absent and not given:
        raise ValueError(
            f"data: the training masks have the values {_words(values)}{ignored}, but never {_words(absent)}; {say}; "
            f"if they are classes and some are missing: --task.classes {classes}"
        )


def _words(values: Sequence[int]) -> str:
    return listed([str(value) for value in values], word="", most=10)


@checking_arguments()
@cache
def pairs(data: Place, splits: tuple[str, ...] = (), masks: str = "") -> dict[Split, tuple[tuple[Path, Path], ...]]:
    """The pairs of every split of a folder.

    Args:
        splits: as in `vision.data.folders.split_folders`.
        masks: the name of the folders of masks; "" = one of `MASKS`.

    Raises:
        ValueError: for a folder that is not there or in neither layout, an image without a mask, a mask without one.
    """
    root = Path(data).expanduser()
    if not data:
        raise ValueError("data: there is no folder ''; name one with images and masks: --data PATH")
    if not os.path.isdir(root):
        where = "it is a file" if os.path.exists(root) else where_missing(root)
        raise ValueError(f"data: there is no folder {shown(data)!r}: {where}; name one with images and masks")
    images = _named(root, IMAGES)
    divided, _ = split_folders(root, () if images else splits, other="")
    if images is None:
        found = {
            split: _matched(_images(folder), _masks(_images(folder), folder, masks))
            for split, folder in divided.items()
        }
        if "train" not in found:
            raise ValueError(f"data: {shown(root)} has no train/images, images/train or images, with masks beside them")
        return found if splits else _apart(found, divided)
    targets = _masks(images, root, masks)
    folders, _ = split_folders(images, splits, other="images of one split")
    loose = files_in(images).images
    if not folders:
        return {"train": _matched(images, targets)}
    if loose:
        raise ValueError(
            f"data: {shown(images)} has {listed([folder.name for folder in folders.values()])}, named as splits, "
            f"beside {len(loose)} images that are in none; move them, or say --task.splits none where all are of one"
        )
    of_masks, _ = split_folders(targets, splits, other="masks of one split")
    for split, folder in folders.items():
        if split not in of_masks:
            raise ValueError(
                f"data: {shown(folder)} has no masks in {shown(targets)}; to leave it out, name the splits that have: "
                + splits_option(**{split: [folders[split].name] for split in folders if split in of_masks})
            )
    if "train" not in folders:
        raise ValueError(f"data: {shown(images)} has no folder of training images")
    found = {split: _matched(folder, of_masks[split]) for split, folder in folders.items()}
    return found if splits else _apart(found, folders)


Files = tuple[tuple[Path, Path], ...]


def _apart(found: dict[Split, Files], folders: dict[Split, Path]) -> dict[Split, Files]:
    """What was found, if no folder of images is in two splits."""
    parents = {split: {image.parent for image, _ in files} for split, files in found.items()}
    places = {split: {os.path.realpath(folder): folder for folder in sorted(of)} for split, of in parents.items()}
    apart(places, {split: [folder.name] for split, folder in folders.items()})
    return found


def _named(folder: Path, names: Sequence[str], option: str = "") -> Path | None:
    """The one folder of such a name, in any case."""
    found = [below for below in subfolders(folder) if below.name.casefold() in names]
    if len(found) > 1:
        settle = f": say which is meant, --task.{option} {found[0].name}" if option else "; leave one of them"
        raise ValueError(f"data: {shown(folder)} has {listed([below.name for below in found])}{settle}")
    return found[0] if found else None


def _images(folder: Path) -> Path:
    found = _named(folder, IMAGES)
    if found is None:
        raise ValueError(f"data: {shown(folder)} has no folder of images ({', '.join(IMAGES)})")
    return found


def _masks(images: Path, above: Path, name: str) -> Path:
    found = _named(above, (name.casefold(),) if name else MASKS, "masks")
    if found is None:
        raise ValueError(
            f"data: {shown(images)} has no masks: there is none of {name or ', '.join(MASKS)} in {shown(above)}; "
            "--task.masks NAME says another name, --task.splits leaves a split out"
        )
    return found


def _matched(images: Path, masks: Path) -> tuple[tuple[Path, Path], ...]:
    def by_name(below: Path) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in map(Path, files_below(below).images):
            name = str(path.relative_to(below).with_suffix(""))
            if name in found:
                raise ValueError(f"data: {shown(found[name])} and {shown(path)} have one name: which is meant is open")
            found[name] = path
        return found

    pictures, targets = by_name(images), by_name(masks)
    for one, other, what in ((pictures, targets, "no mask in"), (targets, pictures, "no image in")):
        lonely = [shown(path) for name, path in one.items() if name not in other]
        if lonely:
            rest = f" and {len(lonely) - 3} more" if len(lonely) > 3 else ""
            raise ValueError(
                f"data: {', '.join(lonely[:3])}{rest}: {what} {shown(masks if one is pictures else images)}; each "
                "image must have a mask of its name, and each mask an image"
            )
    if not pictures:
        raise ValueError(f"data: {shown(images)} holds no image, {only(files_below(images).left)}")
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
                    raise BadData(
                        f"data: {self.images.files[position][1]} has the class {largest}, the last of {self.classes} "
                        f"is {self.classes - 1}"
                    )
                found.append((x, y))
        return torch.stack([x for x, _ in found]), torch.stack([y for _, y in found])
