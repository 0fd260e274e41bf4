"""Semantic segmentation of one's own images, with a Semantic FPN head on any model.

    matmix train segmentation --data FOLDER --model poolformer_s12 --recipe published \\
        --task.weights poolformer_s12.pth --task.weights-classes 1000

trains as the papers do on ADE20K (its folder: `--task.ignore-zero --task.classes 150`); without `--recipe published` a
small ConvFormer starts from scratch at 128 px. `vision.data.masks` says how the folder looks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.experiments.task import Batch, Recipe, Split, Task
from matmix.experiments.weights import load_weights
from matmix.ops.seed import fork_seed
from matmix.ranges import Amount, Chance, Count, LessThanHalf, Positive, Seed, Share, Whole, numbers
from vision.data.batches import evaluation_shares, load, training_shares
from vision.data.decoding import shown
from vision.data.folders import check_splits, counted, files_below, listed, several
from vision.data.images import readable, skipped
from vision.data.masks import IGNORED, Cut, CutPairs, Pairs, check_classes, pairs
from vision.data.splits import divide
from vision.dense import semantic_fpn
from vision.tasks.classify import data_config, sized
from vision.tasks.imagefolder import SMALL

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclasses.dataclass(frozen=True)
class Segmentation(Task):
    """Which class does every pixel show?

    Evaluation sees whole images with their long side brought to `img_size`, and scores at that size.
    """

    architecture: str = SMALL
    """Backbone: a name, or a call with options as in "convformer_s18(depths=(2, 2, 4, 2))"; `--model` for short."""
    data: str = ""
    """Folder of images and masks; `--data` for short."""
    img_size: Count = 128
    """Side of the square that the model sees."""
    classes: Annotated[int, numbers(0, IGNORED - 1, whole=True)] = 0
    """Number of classes; 0 = as many as the masks of the training split show."""
    ignore_zero: bool = False
    """0 in a mask means "no class", and classes count from 1 (ADE20K)."""
    mask_values: tuple[Annotated[int, numbers(0, 255, whole=True)], ...] = ()
    """The values in masks that stand for the classes 0, 1, ..., as in 0 255; absent: the values are the classes."""
    masks: str = ""
    """Name of the folders of masks, where it is none of the usual ones or several are there."""
    splits: tuple[str, ...] = ()
    """The folders of the splits where their names leave that open: train=NAME val=NAME test=NAME; others are left out.
    "none": images and masks are not divided."""
    exif: bool = True
    """Turn photos and masks as the orientation in their EXIF says; off: as the pixels are stored."""
    broken: Literal["stop", "skip"] = "stop"
    """What an unreadable image or mask does. "skip" reads everything once first, leaves those out and lists them."""
    scale: tuple[Positive, Positive] = (0.5, 2.0)
    """Short side of a training image over `img_size`, from and to."""
    flip: Share = 0.5
    color_jitter: Amount = 0.0
    held_out: LessThanHalf = 0.1
    """Share of the training images that stands in for a validation (and test) split where the data have none."""
    split_seed: Seed = 0
    """Of what is held out."""
    width: Count = 256
    """Channels of the feature pyramid."""
    inner: Count = 128
    """Channels of the head."""
    dropout: Chance = 0.1
    """Of whole channels, before the classifier."""
    drop_path: Chance = 0.0
    weights: str = ""
    """File of the backbone to start from, one's own or published; `source` as in `matmix.load_published`, "" = found by
    the names."""
    source: str = ""
    weights_classes: Whole = 0
    """Number of classes of that file."""
    weights_size: Whole = 0
    """Image size of that file where it differs: what is tied to it is resized."""

    metric: ClassVar[str] = "miou"
    aliases: ClassVar[dict[str, str]] = {"model": "architecture", "data": "data"}

    def __post_init__(self) -> None:
        check_splits(self.splits)
        values = self.mask_values
        if values and not len(values) == len(set(values)) > 1:
            raise ValueError(f"Segmentation.mask_values must be two or more different numbers, got {values}")
        if values and (self.ignore_zero or self.classes not in (0, len(values))):
            raise ValueError(
                f"mask_values say {len(values)} classes; leave out classes and ignore_zero, which say others"
            )
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"Segmentation.scale must go from small to large, got {self.scale}")

    def recipe(self) -> Recipe:
        return Recipe(
            steps=2000, batch_size=16, lr=1e-3, lr_end=0.01, weight_decay=0.05, betas=(0.9, 0.999), log_every=20,
            eval_every=200, checkpoint_every=200, eval_batch_size=16,
        )  # fmt: skip

    def named_recipe(self, name: str) -> tuple[Task, Recipe]:
        """ "published": Semantic FPN on ADE20K as PoolFormer, DFFormer and RaftMLP train it: AdamW 2e-4, decay 1e-4,
        40,000 steps of 32 crops of 512 px, the rate falling as (1 - t)^0.9; it starts from weights of ImageNet.
        Reaches, in mIoU: PoolFormer s12 37.2, s24 40.3, s36 42.0, m36 42.4, m48 42.7."""
        if name != "published":
            return super().named_recipe(name)
        recipe = Recipe(
            steps=40_000, batch_size=32, lr=2e-4, warmup=0.0, schedule="power", power=0.9, weight_decay=1e-4,
            betas=(0.9, 0.999), clip=0.0, log_every=50, eval_every=4000, checkpoint_every=4000, eval_batch_size=16,
        )  # fmt: skip
        return dataclasses.replace(self, img_size=512, scale=(0.5, 2.0), color_jitter=0.25), recipe

    # ------------------------------------------------------------------ the model

    def model(self, mixer: str, seed: int) -> nn.Module:
        """The architecture, with `mixer` in place of its own token mixers unless that is empty, and the head."""
        options: dict[str, Any] = {"num_classes": self.weights_classes}
        options |= {name: v for name, v in {"drop_path_rate": self.drop_path, "mixers": mixer}.items() if v}
        with fork_seed(seed, "model"):
            made = sized(self.architecture, self.weights_size or self.img_size, options)
        if self.weights:
            load_weights(made, self.weights, self.source)
        resized = self.img_size if self.weights_size else None
        with fork_seed(seed, "head"):
            return semantic_fpn(made, self.number_of_classes(), img_size=resized, **self._head())

    def title(self) -> str:
        return self.architecture

    def _head(self) -> dict[str, Any]:
        return {"width": self.width, "inner": self.inner, "drop_rate": self.dropout}

    def number_of_classes(self) -> int:
        """As told, or one more than the largest value in the training masks."""
        if self.classes or self.mask_values:
            return self.classes or len(self.mask_values)
        counts = self._counts()
        seen = np.flatnonzero(counts[:IGNORED])
        classes = int(seen[-1]) + 1 if len(seen) else 0
        check_classes(counts, classes, given=False)
        return classes

    def _counts(self, most: int | None = None) -> np.ndarray:
        """Pixels of each value in the training masks."""
        return _counts(self._data(), most)

    def example(self) -> tuple[Tensor, ...]:
        return (self._cut(False)(self.pairs("val").read(0))[0][None],)

    # ------------------------------------------------------------------ the data

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        found, train, where = self.pairs(split), split == "train", {"rank": rank, "world": world}
        if train:
            self._check()
            shares = training_shares(len(found), batch_size, seed=seed, start=start, **where)
        else:
            shares = evaluation_shares(len(found), batch_size, **where)
        dataset = CutPairs(found, self._cut(train), self.number_of_classes())
        return (Batch(x, y) for x, y in load(dataset, shares))

    def pairs(self, split: Split) -> Pairs:
        """Images and masks of a split. A lone validation split is what one tests on."""
        found = self._files()
        if "val" in found and "test" not in found:
            found["test"] = found.pop("val")
        missing: list[Split] = [name for name in ("val", "test") if name not in found]
        if split in missing and self.held_out == 0:  # as in the papers: what one tests on also picks the weights
            return self._pairs(found["test" if "test" in found else "train"])
        if split == "train" or split in missing:
            files = found["train"]
            parts = divide([0] * len(files), self.held_out, len(missing), self.split_seed)
            part = parts[missing.index(split) if split in missing else -1]
            return self._pairs([files[index] for index in part])
        return self._pairs(found[split])

    def _pairs(self, files: Sequence[tuple[Path, Path]]) -> Pairs:
        return Pairs(files, self.ignore_zero, self.mask_values, self.exif)

    def _data(self) -> tuple[Any, ...]:
        """What the pairs and their masks depend on."""
        return self.data, self.splits, self.masks, self.ignore_zero, self.mask_values, self.exif, self.broken

    def _files(self) -> dict[Split, tuple[tuple[Path, Path], ...]]:
        return dict(_files(*self._data())[0])

    def _cut(self, train: bool) -> Cut:
        config = data_config(self.architecture)
        mean, std = tuple(config["mean"]), tuple(config["std"])
        return Cut(self.img_size, mean, std, train, self.scale, self.flip, self.color_jitter)

    # ------------------------------------------------------------------ scores

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of the pixels that count, over all pixels, so that parts of a batch add up."""
        summed = F.cross_entropy(output, batch.y, ignore_index=IGNORED, reduction="sum")
        return summed / batch.y.numel()

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return output.argmax(1), batch.y

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

        count = self.number_of_classes()
        return {
            "miou": MulticlassJaccardIndex(count, ignore_index=IGNORED),
            "pixel_accuracy": MulticlassAccuracy(count, average="micro", ignore_index=IGNORED),
        }

    def baselines(self) -> dict[str, dict[str, float]]:
        most = int(self.pairs("train").counts(200)[:IGNORED].argmax())
        counts = self.pairs("test").counts(200)[:IGNORED]
        share, seen = counts[most] / max(1, counts.sum()), max(1, int((counts > 0).sum()))
        return {"most frequent class": {"miou": float(share / seen), "pixel_accuracy": float(share)}}

    def facts(self) -> dict[str, Any]:
        splits: tuple[Split, ...] = ("train", "val", "test")
        found = {split: len(self.pairs(split)) for split in splits} | {"classes": self.number_of_classes()}
        broken = _files(*self._data())[1]
        return found | ({"broken": len(broken), "broken files": ", ".join(broken)} if broken else {})

    def _check(self) -> np.ndarray:
        """The training masks are worth training on: more than one class occurs."""
        counts = self._counts(200 if self.classes else None)
        if np.count_nonzero(counts[:IGNORED]) < 2:  # of those 200; what is rare may be in others
            counts = self._counts()
        check_classes(counts, self.number_of_classes(), given=bool(self.classes or self.mask_values))
        return counts

    def found(self) -> str:
        counts, names = self._check(), self._files()
        lines = [f"data: {shown(self.data)}"]
        for split in ("train", "val", "test"):
            files = self.pairs(split).files
            where = f" ({shown(names[split][0][0].parent)}, ...)" if names.get(split) else ""
            lines.append(f"  {split}: {several(len(files), 'pair')} of image and mask{where}")
        classes = self.number_of_classes()
        shares = counts[:classes] / max(1, counts[:IGNORED].sum())
        absent = [str(label) for label in range(classes) if not counts[label]]
        if classes <= 12:
            lines.append("  pixels by class: " + ", ".join(f"{at} {share:.1%}" for at, share in enumerate(shares)))
        else:
            lines.append(f"  {classes} classes, from {shares.min():.2%} to {shares.max():.2%} of the pixels")
        if absent:
            of = "200 training masks" if self.classes and len(names["train"]) > 200 else "the training masks"
            lines.append(f"  in none of {of}: class {listed(absent, word='', most=10)}")
        if counts[IGNORED]:
            lines.append(f"  not counted: {counts[IGNORED] / counts.sum():.1%} of the pixels")
        there = files_below(Path(self.data).expanduser())
        others = len(there.images) - 2 * sum(map(len, names.values()))
        if there.left or others:
            lines.append(f"  left out: {counted(there.left, others)}")
        return "\n".join(lines)


@cache
def _files(
    data: str,
    splits: tuple[str, ...],
    masks: str,
    ignore_zero: bool,
    values: tuple[int, ...],
    exif: bool,
    broken: str,
) -> tuple[dict[Split, tuple[tuple[Path, Path], ...]], tuple[str, ...]]:
    """The pairs of every split that can be read, and the files that cannot."""
    found, left = dict(pairs(data, splits, masks)), list[str]()
    if broken == "skip":
        for split, files in found.items():
            good, bad = readable(Pairs(files, ignore_zero, values, exif))
            skipped(split, len(files), bad)
            found[split], left = tuple(files[at] for at in good), left + bad
    return found, tuple(left)


@cache
def _counts(data: tuple[Any, ...], most: int | None) -> np.ndarray:
    """All masks are read for it, so once."""
    _, _, _, ignore_zero, values, exif, _ = data
    return Pairs(_files(*data)[0]["train"], ignore_zero, values, exif).counts(most)
