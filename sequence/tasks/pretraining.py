"""Pretraining on the inputs of a task alone (arXiv 2310.02980): filling in what is hidden, or saying what comes next.

    matmix train listops-pretraining --recipe spt --out PRE
    matmix train listops --recipe spt --task.init-from PRE

The second command takes the best weights of the first, all but the head's. Both need the same settings of the encoder,
the same inputs (special tokens too) and the same mixer.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Recipe, Split
from matmix.ranges import OpenShare
from matmix.sampling import stream
from sequence.data.labels import IGNORED
from sequence.regimes import PRETRAINING, Regime
from sequence.regimes.settings import RegimeSettings
from sequence.tasks.listops import ListOps
from sequence.tasks.retrieval import Retrieval
from sequence.tasks.text import Text

if TYPE_CHECKING:
    from torchmetrics import Metric

    from sequence.data.vocabulary import Vocabulary
    from sequence.encoder import Encoder

Objective = Literal["masked", "causal"]
HIDING = 0x6D61736B  # sets the draws of what is hidden apart from those of the order


@dataclasses.dataclass(frozen=True)
class Pretraining(RegimeSettings):
    """In front of a task: its inputs, and what is hidden of them as targets.

    "masked": every position is hidden with the probability `share`, drawn anew at every step; the targets are what
    stands there. What is hidden in validation and test is the same each time. "causal": the target of every position
    is the next one; the mixers must be causal. Padding is no target.
    """

    objective: Objective = "masked"
    share: OpenShare = 0.15
    """Of positions that are hidden."""

    metric: ClassVar[str] = "accuracy"
    each: ClassVar[int] = 1
    """Sequences of an example of the task; here each is an example of its own."""
    regimes: ClassVar[dict[str, Callable[[str], Regime]]] = PRETRAINING

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # that of the task behind it, as all others here

    @abstractmethod
    def longest(self) -> int:
        """The most positions of a sequence."""

    @abstractmethod
    def classes_of_targets(self) -> int:
        """How many values a target may have."""

    @abstractmethod
    def posed(self, x: Tensor, mask: Tensor | None, hidden: Tensor | None) -> Batch:
        """Sequences (B, L) as inputs and targets: what `hidden` (B, L) names is to be filled in, or where that is None
        the next one is to be said."""

    def plain_recipe(self) -> Recipe:
        """As many steps of as many examples as the task, at a constant rate."""
        return dataclasses.replace(super().plain_recipe(), schedule="constant")  # type: ignore[safe-super]

    def tests(self) -> tuple[str, ...]:
        """None of the further ones of the task: they ask what its labels need of order or length."""
        return ()

    def head(self) -> Literal["language", "token"]:
        """Of the encoder: "language" refuses mixers that see what comes next."""
        return "language" if self.objective == "causal" else "token"

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        if split == "train" and batch_size % self.each:
            raise ValueError(f"a batch must divide by {self.each}, the sequences of an example, got {batch_size}")
        size = max(1, batch_size // self.each)
        found = super().batches(  # type: ignore[safe-super]
            split, size, seed=seed, start=start, rank=rank, world=world
        )
        for step, batch in enumerate(found, start):
            x = batch.x.flatten(0, -2)
            mask = None if batch.mask is None else batch.mask.flatten(0, -2)
            if self.objective == "causal":
                yield self.posed(x, mask, None)
                continue
            if split == "train":
                chance = _chances(stream(HIDING, seed), step, size, self.each, self.longest())[rank::world]
            else:  # by the example, whatever the size of a batch
                rows = range(step * size + rank, (step + 1) * size, world)[: len(batch.x)]
                chance = torch.cat([_chances(HIDING, row, 1, self.each, self.longest()) for row in rows])
            hidden = chance.flatten(0, 1)[: len(x), : x.shape[1]] < self.share
            yield self.posed(x, mask, hidden if mask is None else hidden & mask)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(*self.prediction(output, batch), ignore_index=IGNORED)

    def weight(self, batch: Batch) -> float:
        return int((batch.y != IGNORED).sum())

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(self.classes_of_targets(), average="micro", ignore_index=IGNORED)}

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return output.flatten(0, 1), batch.y.flatten()

    def baselines(self) -> dict[str, dict[str, float]]:
        """The value that is most frequent among the targets of the test, in its first thousand sequences."""
        count, seen = torch.zeros(self.classes_of_targets(), dtype=torch.long), 0
        for batch in self.batches("test", 100):
            count += torch.bincount(batch.y[batch.y != IGNORED], minlength=len(count))
            seen += len(batch.x)
            if seen >= 1000:
                break
        return {"most frequent target": {"accuracy": int(count.max()) / max(1, int(count.sum()))}}

    def facts(self) -> dict[str, Any]:
        said = "what comes next" if self.objective == "causal" else f"{self.share:.0%} of the positions, hidden"
        return {**super().facts(), "targets": said}


def following(values: Tensor, mask: Tensor | None, none: float) -> Tensor:
    """What comes next at each position (B, L), and `none` where nothing does."""
    later = values[:, 1:] if mask is None else torch.where(mask[:, 1:], values[:, 1:], none)
    return nn.functional.pad(later, (0, 1), value=none)


def _chances(seed: int, index: int, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1) that follow from two numbers."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(stream(seed, index)))


@dataclasses.dataclass(frozen=True)
class TokenPretraining(Pretraining):
    """In front of a task on tokens. A hidden one is always replaced by the token "mask"."""

    if TYPE_CHECKING:  # the task behind it has these
        pad: Literal["batch", "length", "packed"] = "batch"
        specials: tuple[str, ...] = ()
        length: int = 0

        def vocabulary(self) -> Vocabulary: ...

        def checked(self, model: Encoder) -> Encoder: ...

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.pad == "packed":
            raise ValueError(f"{name}.pad must be 'batch' or 'length': targets are not packed")
        if self.objective == "masked" and "mask" not in self.special_tokens():
            raise ValueError(
                f"{name}.specials need 'mask', to hide tokens with, got {' '.join(self.specials)}; the task that takes "
                "the weights over needs the same"
            )

    def special_tokens(self) -> tuple[str, ...]:
        """Those of the task, and one to hide others with."""
        found: tuple[str, ...] = super().special_tokens()  # type: ignore[misc]
        return found if self.specials or "mask" in found else ("mask", *found)

    def longest(self) -> int:
        return self.length

    def classes_of_targets(self) -> int:
        return len(self.vocabulary())

    def model(self, mixer: str, seed: int) -> nn.Module:
        count, head = len(self.vocabulary()), self.head()
        return self.checked(
            self.encoder(mixer, seed, vocabulary=count, grid=(self.length,), head=head, outputs=count, head_hidden=())
        )

    def posed(self, x: Tensor, mask: Tensor | None, hidden: Tensor | None) -> Batch:
        if hidden is None:
            return Batch(x, following(x, mask, IGNORED), mask)
        blank = self.vocabulary().special("mask")
        assert blank is not None  # __post_init__ asks for it
        return Batch(x.masked_fill(hidden, blank), torch.where(hidden, x, IGNORED), mask)


@dataclasses.dataclass(frozen=True)
class ListOpsPretraining(TokenPretraining, ListOps):
    """Fill gaps in nested lists, or say their next token."""

    share: OpenShare = 0.1


@dataclasses.dataclass(frozen=True)
class TextPretraining(TokenPretraining, Text):
    """Fill gaps in film reviews, or say their next token."""


@dataclasses.dataclass(frozen=True)
class RetrievalPretraining(TokenPretraining, Retrieval):
    """Fill gaps in papers, or say their next token; the two of a pair are examples of their own."""

    each: ClassVar[int] = 2
