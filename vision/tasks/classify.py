"""What the image classification tasks share: model, batches, loss, metrics, and what is said about the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from matmix.experiments.models import create_model, read
from matmix.experiments.task import Batch, Recipe, Split, Task
from matmix.experiments.weights import load_weights
from matmix.ops.seed import fork_seed
from matmix.ranges import Amount, Chance, Count, LessThanHalf, Portion, Seed, Share, Whole
from vision.data.batches import Mix, evaluation_shares, load, training_shares
from vision.data.folders import check_splits
from vision.data.images import Images, Transformed
from vision.data.source import Source
from vision.data.splits import in_words, left_out, sources, split_images, summary
from vision.recipes import published

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Classify", "data_config", "sized"]

SYNTHETIC = "synthetic"
CUT = 8
"""Squares along a side of an image whose order is drawn."""


@dataclasses.dataclass(frozen=True)
class Classify(Task):
    """Which class does an image show?"""

    architecture: str = ""
    """Model: a name, or a call with options as in "convformer_s18(depths=(2, 2, 4, 2))"; `--model` for short."""
    data: str = ""
    """Where the images are (see `vision.data.sources`), or "synthetic": noise, to measure throughput. Also `--data`."""
    img_size: Whole = 0
    """Side of the square that the model sees; 0 = the size that the model was published for."""
    channels: Literal[1, 3] = 3
    crop: Share = 0.0
    """Share of the short side that evaluation cuts out of the middle; 0 = what the model was published with."""
    shrink: Whole = 0
    """Short side to which images are reduced once and held in memory; 0 = files are read each time."""
    broken: Literal["stop", "skip"] = "stop"
    """What an unreadable file does. "skip" reads everything once first, leaves those out and lists them."""
    splits: tuple[str, ...] = ()
    """The folders of the splits where their names leave that open: train=NAME val=NAME test=NAME; others are left out.
    "none": all folders are classes, whatever they are called."""
    held_out: LessThanHalf = 0.1
    """Share of the training images that stands in for a validation (and test) split where the data have none."""
    split_seed: Seed = 0
    """Of what is held out."""
    scale: tuple[Portion, Portion] = (0.08, 1.0)
    """Share of the area that a training crop takes, from and to."""
    flip: Share = 0.5
    color_jitter: Amount = 0.0
    auto_augment: str = ""
    """timm's name of a policy, such as "rand-m9-mstd0.5-inc1" (RandAugment); it replaces `color_jitter`."""
    erasing: Share = 0.0
    """Probability of random erasing (arXiv 1708.04896) with noise."""
    mixup: Amount = 0.0
    cutmix: Amount = 0.0
    smoothing: Chance = 0.0
    repeats: Count = 1
    """Augmented copies of an image in one batch."""
    drop_path: Chance = 0.0
    dropout: Chance = 0.0
    """Before the classifier."""
    weights: str = ""
    """File to start from, one's own or published; `source` as in `matmix.load_published`, "" = found by the names."""
    source: str = ""
    weights_classes: Whole = 0
    """Number of classes of that file where it differs: its classifier is then replaced by a new one."""
    weights_size: Whole = 0
    """Image size of that file where it differs: what is tied to it is resized."""

    metric: ClassVar[str] = "accuracy"
    aliases: ClassVar[dict[str, str]] = {"model": "architecture", "data": "data"}
    classes: ClassVar[int] = 0  # where the task fixes their number
    as_test: ClassVar[Split] = "test"  # the split of the source that the task tests on

    def __post_init__(self) -> None:
        check_splits(self.splits)
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"{type(self).__name__}.scale must go from small to large, got {self.scale}")

    def named_recipe(self, name: str) -> tuple[Task, Recipe]:
        """ "published" is that of the model's paper (see `vision.recipes`), augmentation and drop path included."""
        if name == "default":
            return self, self.recipe()
        settings, recipe = published(read(self.architecture)[1], name)
        return dataclasses.replace(self, **settings), recipe

    # ------------------------------------------------------------------ the model

    def model(self, mixer: str, seed: int) -> nn.Module:
        """The architecture, with `mixer` in place of its own token mixers unless that is empty."""
        if not self.architecture:
            raise ValueError("name the model: --model caformer_s18")
        options: dict[str, Any] = {"num_classes": self.weights_classes or self.number_of_classes()}
        asked = {"drop_path_rate": self.drop_path, "drop_rate": self.dropout, "mixers": mixer}
        options |= {"in_chans": self.channels, **{name: value for name, value in asked.items() if value}}
        with fork_seed(seed, "model"):
            made = sized(self.architecture, self.weights_size or self.side(), options)
        if self.weights:
            load_weights(made, self.weights, self.source)
        if self.weights_classes:
            with fork_seed(seed, "classifier"):
                made.reset_classifier(self.number_of_classes())  # type: ignore[operator]
        if self.weights_size:
            made.resize_(self.side())  # type: ignore[operator]
        return made

    def title(self) -> str:
        return self.architecture

    def side(self) -> int:
        """The image size in use."""
        return (
            self.img_size
            or read(self.architecture)[2].get("img_size")
            or data_config(self.architecture)["input_size"][-1]
        )

    def number_of_classes(self) -> int:
        return self.classes or len(next(iter(self._sources().values())).class_to_idx)

    def example(self) -> tuple[Tensor, ...]:
        if self.data == SYNTHETIC:
            return (self._noise(1)[0],)
        return (self._transform(False)(self.images("val").read(0))[None],)

    # ------------------------------------------------------------------ the data

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        train = split == "train"
        if self.data == SYNTHETIC:
            one = Batch(*self._noise(batch_size // world, split == "train"))
            return iter(lambda: one, None) if train else iter([one])
        images = self.images(split)
        mix = (
            Mix(self.number_of_classes(), self.mixup, self.cutmix, self.smoothing) if train and self._mixes() else None
        )
        where: dict[str, int] = {"rank": rank, "world": world}
        if train:
            shares = training_shares(len(images), batch_size, seed=seed, start=start, repeats=self.repeats, **where)
        else:
            shares = evaluation_shares(len(images), batch_size, **where)
        return (Batch(x, y) for x, y in load(Transformed(images, self._transform(train), mix), shares))

    def in_another_order(self, batch: Batch, draw: torch.Generator) -> Batch:
        """The image cut into squares of an eighth of its side, in a drawn order."""
        side = batch.x.shape[-1] // CUT
        if side * CUT != batch.x.shape[-1]:
            return super().in_another_order(batch, draw)
        squares = batch.x.unfold(2, side, side).unfold(3, side, side).flatten(2, 3)  # (B, channels, 64, side, side)
        order = torch.rand(squares.shape[0], squares.shape[2], generator=draw).argsort(1)
        squares = squares.gather(2, order[:, None, :, None, None].expand_as(squares)).unflatten(2, (CUT, CUT))
        return batch._replace(x=squares.transpose(3, 4).flatten(4, 5).flatten(2, 3))

    def images(self, split: Split) -> Images:
        """The images of a split; broken ones are gone, and decoded ones held, as the settings say."""
        self._sources()
        return split_images(
            self.data,
            self.as_test,
            split,
            self.channels,
            self.shrink,
            self.broken,
            self.held_out,
            self.split_seed,
            self.splits,
        )

    def _mixes(self) -> bool:
        return bool(self.mixup or self.cutmix or self.smoothing)

    def _sources(self) -> dict[Split, Source]:
        found = sources(self.data, self.as_test, self.splits)
        count = len(next(iter(found.values())).class_to_idx)
        if self.classes not in (0, count):  # their numbers would be those of other classes
            raise ValueError(
                f"data: {self.data} has {count} classes, {type(self).__name__} has {self.classes}; the task "
                "imagefolder takes any number"
            )
        return found

    def _noise(self, count: int, train: bool = False) -> tuple[Tensor, Tensor]:
        random, side = torch.Generator().manual_seed(0), self.side()
        x = torch.randn(count, self.channels, side, side, generator=random)
        y = torch.randint(self.number_of_classes(), (count,), generator=random)
        return Mix(self.number_of_classes(), smoothing=self.smoothing)(x, y, 0) if train and self._mixes() else (x, y)

    def _transform(self, train: bool) -> Any:
        config = data_config(self.architecture)
        size = (self.channels, self.side(), self.side())
        mean, std = config["mean"], config["std"]
        if self.channels == 1:
            mean, std = ((sum(values) / len(values),) for values in (mean, std))
        if not train:
            return create_transform(
                size,
                crop_pct=self.crop or config["crop_pct"],
                crop_mode=config["crop_mode"],
                interpolation=config["interpolation"],
                mean=mean,
                std=std,
            )
        return create_transform(
            size,
            is_training=True,
            scale=self.scale,
            hflip=self.flip,
            color_jitter=self.color_jitter or None,  # type: ignore[arg-type]
            auto_augment=self.auto_augment or None,
            interpolation="random",  # bilinear or bicubic, as timm's training does
            re_prob=self.erasing,
            re_mode="pixel",
            mean=mean,
            std=std,
        )

    # ------------------------------------------------------------------ scores

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross entropy with labels (B,) or soft targets (B, classes)."""
        return nn.functional.cross_entropy(output, batch.y)

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        count = self.number_of_classes()
        wanted = {"accuracy": 1, "top5": 5} if count > 5 else {"accuracy": 1}
        return {name: MulticlassAccuracy(count, top_k=top, average="micro") for name, top in wanted.items()}

    def baselines(self) -> dict[str, dict[str, float]]:
        if self.data == SYNTHETIC:
            return {"chance": {"accuracy": 1 / self.number_of_classes()}}
        most = self.images("train").targets.mode().values
        return {"most frequent class": {"accuracy": (self.images("test").targets == most).double().mean().item()}}

    def facts(self) -> dict[str, Any]:
        if self.data == SYNTHETIC:
            return {"data": "noise: only the speed means anything"}
        splits: tuple[Split, ...] = ("train", "val", "test")
        found: dict[str, Any] = {split: len(self.images(split)) for split in splits}
        broken = [name for split in splits for name in self.images(split).broken]
        found |= {"broken": len(broken), "broken files": ", ".join(broken)} if broken else {}
        left = left_out(self.data, self.as_test, self.splits)
        return found | ({"left out": in_words(left)} if left else {})

    def found(self) -> str:
        if self.data == SYNTHETIC:
            return ""
        self._sources()
        return summary(self.data, self.as_test, self.splits, self.held_out, self.split_seed)


@cache
def data_config(architecture: str) -> dict[str, Any]:
    """Input size, mean, deviation, interpolation and crop that a model was published with."""
    # Building a model draws random numbers; in the middle of a training they would be missing from the stream.
    with fork_seed(0, "data_config"), torch.device("meta"):
        return resolve_model_data_config(create_model(architecture))


def sized(architecture: str, side: int, options: dict[str, Any]) -> nn.Module:
    """Models that are tied to a size are told it; some of timm's take any size and do not know the option."""
    try:
        return create_model(architecture, img_size=side, **options)
    except TypeError as error:
        if not architecture.startswith("timm:") or "img_size" not in str(error):
            raise
        return create_model(architecture, **options)
