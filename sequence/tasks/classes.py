"""What tasks that read sequences of tokens and say a class have in common."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Split
from matmix.ranges import Count
from matmix.sampling import drawn
from sequence.data.characters import Tokens
from sequence.data.labelled import Labelled
from sequence.data.labels import IGNORED
from sequence.data.numbering import Numbering
from sequence.data.vocabulary import Vocabulary, check_specials
from sequence.encoder import Encoder
from sequence.packing import pack
from sequence.regimes.settings import RegimeSettings
from sequence.shuffling import ShuffledTest
from sequence.tasks.settings import ClassSettings

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclasses.dataclass(frozen=True)
class TokenSettings(ClassSettings):
    """Settings of all of them."""

    length: Count = 2048
    """The most tokens that the model takes."""
    pad: Literal["batch", "length", "packed"] = "batch"
    """Batches are as long as their longest sequence, or always `length`, for mixers of a fixed length. "packed" puts
    sequences one behind the other into rows of up to `length` tokens, for mixers that keep them apart."""
    buckets: bool = False
    """Batches hold sequences of similar length, so that little of them is padding."""
    specials: tuple[str, ...] = ()
    """Special tokens, in the order of their numbers from 0: "pad", and any of "unk", "eos", "mask". With "eos" every
    sequence ends with one. Empty: "pad" alone; for texts as characters "pad", "unk", "eos"."""
    broken: Literal["stop", "skip"] = "stop"
    """What is done about damaged rows: stop with their file and line, or leave them out and count them."""
    cache: str = ""
    """Folder for prepared data; empty: that of the variable MATMIX_CACHE, else the platform's for caches."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.length < 2 and "eos" in self.special_tokens():
            raise ValueError(f"{name}.length must be at least 2 with 'eos' among the specials, got {self.length}")
        check_specials(self.special_tokens())

    def special_tokens(self) -> tuple[str, ...]:
        """`specials`, or those of this task."""
        return self.specials or ("pad",)

    def room(self) -> int:
        """How many tokens of a text are kept beside the special ones."""
        return self.length - ("eos" in self.special_tokens())

    def checked(self, model: Encoder) -> Encoder:
        """The model, if its mixers take batches as they are padded."""
        check_padding(model, self.pad)
        apart = [type(mixer).__name__ for mixer in model.mixers if not mixer.traits.packed]
        if apart and self.pad == "packed":
            raise ValueError(f"{apart[0]} does not keep packed sequences apart: take --task.pad batch")
        return model

    def indices(
        self, split: Split, lengths: np.ndarray, batch_size: int, seed: int, start: int, rank: int, world: int
    ) -> Iterator[Tensor]:
        """Which examples, of these lengths, are in the batches of a split."""
        kept = torch.from_numpy(np.minimum(lengths, self.room()))
        train, share = split == "train", {"rank": rank, "world": world}
        return drawn(kept, batch_size, train=train, buckets=self.buckets, seed=seed, start=start, **share)


@dataclasses.dataclass(frozen=True)
class TextSettings(TokenSettings):
    """Settings of tasks on texts."""

    tokens: Tokens = "bytes"
    """Bytes, or characters with a vocabulary that is made from the training texts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens == "characters" and "unk" not in self.special_tokens():
            raise ValueError(
                f"{type(self).__name__}.specials with tokens='characters' need 'unk', for those that training has not; "
                f"got {' '.join(self.specials)}"
            )

    def special_tokens(self) -> tuple[str, ...]:
        return self.specials or (("pad",) if self.tokens == "bytes" else ("pad", "unk", "eos"))


@dataclasses.dataclass(frozen=True)
class TokenTask(ShuffledTest, RegimeSettings, TokenSettings):
    """A class for each sequence of tokens. A subclass says where the sequences come from."""

    metric: ClassVar[str] = "accuracy"
    classes: ClassVar[int]

    def ordered(self) -> bool:
        return self.pad != "packed"

    @abstractmethod
    def labelled(self, split: Split) -> Labelled:
        """Prepared sequences and classes of a split; asked for often, so kept by whoever makes them."""

    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """What the ids mean."""

    def numbering(self) -> Numbering:
        """How rows become ids."""
        return Numbering(self.vocabulary(), self.length, self.pad == "length")

    def model(self, mixer: str, seed: int) -> nn.Module:
        count = len(self.vocabulary())
        return self.checked(
            self.encoder(mixer, seed, vocabulary=count, grid=(self.length,), head="class", outputs=self.classes)
        )

    def unshuffled(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        rows, labels = self.labelled(split)
        numbering = self.numbering()
        for at in self.indices(split, rows.lengths, batch_size, seed, start, rank, world):
            x, mask = numbering.batch(rows, at.tolist())
            batch = Batch(x, torch.from_numpy(labels[at.numpy()].astype(np.int64)), mask)
            yield pack(batch, self.length) if self.pad == "packed" else batch

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(*self.prediction(output, batch), ignore_index=IGNORED)

    def weight(self, batch: Batch) -> float:
        return int((batch.y != IGNORED).sum())

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of packed rows, those of all sequences; a part of a batch may have fewer in a row than the whole."""
        y = batch.y if output.dim() == 2 else batch.y[:, : output.shape[1]]
        return output.flatten(0, -2), y.flatten()

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(self.classes, average="micro", ignore_index=IGNORED)}

    def baselines(self) -> dict[str, dict[str, float]]:
        return class_baselines(self.labelled("train").labels, self.labelled("test").labels, self.classes)


def check_padding(model: Encoder, pad: str) -> None:
    """Refuse mixers of a fixed length where batches are as long as their longest sequence."""
    fixed = [type(mixer).__name__ for mixer in model.mixers if mixer.traits.length == "fixed"]
    if fixed and pad != "length":
        raise ValueError(
            f"{fixed[0]} takes sequences of one length, and batches are padded to their longest: "
            "--task.pad length pads all of them to --task.length"
        )


def class_baselines(train: np.ndarray, test: np.ndarray, classes: int) -> dict[str, dict[str, float]]:
    """Chance, and the class that is most frequent in training, scored on the test labels."""
    most = int(np.bincount(train, minlength=classes).argmax())
    return {
        "chance": {"accuracy": 1 / classes},
        "most frequent class": {"accuracy": float((test == most).mean())},
    }
