"""Pretraining on the inputs of a task alone (arXiv 2310.02980): hidden tokens are filled, or the next token is said.

    matmix train listops-pretraining --recipe spt --out PRE
    matmix train listops --recipe spt --task.init-from PRE

The second command takes the best weights of the first, all but the head's. Both need the same settings of the encoder,
the same special tokens and the same mixer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Recipe, Split
from matmix.sampling import stream
from sequence.regimes import PRETRAINING, Regime
from sequence.regimes.settings import RegimeSettings
from sequence.tasks.listops import ListOps
from sequence.tasks.retrieval import Retrieval
from sequence.tasks.text import Text

if TYPE_CHECKING:
    from torchmetrics import Metric

Objective = Literal["masked", "causal"]
IGNORED = -100
HIDING = 0x6D61736B  # sets the draws of what is hidden apart from those of the order


@dataclasses.dataclass(frozen=True)
class Pretraining(RegimeSettings):
    """In front of a task on tokens: its inputs, and what is hidden of them as targets.

    "masked": every token is hidden with the probability `share`, drawn anew at every step, and always replaced by the
    token "mask"; the targets are the hidden tokens. What is hidden in validation and test is the same each time.
    "causal": the target of every token is the next one; the mixers must be causal. Padding is no target.
    """

    objective: Objective = "masked"
    share: float = 0.15
    """Of tokens that are hidden."""

    metric: ClassVar[str] = "accuracy"
    each: ClassVar[int] = 1
    """Sequences of an example of the task; here each is an example of its own."""
    regimes: ClassVar[dict[str, Callable[[str], Regime]]] = PRETRAINING

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.objective not in ("masked", "causal"):
            raise ValueError(f"{name}.objective must be 'masked' or 'causal', got {self.objective!r}")
        if not 0 < self.share < 1:
            raise ValueError(f"{name}.share is a share between 0 and 1, got {self.share}")
        if self.pad == "packed":
            raise ValueError(f"{name}.pad must be 'batch' or 'length': targets are not packed")
        if self.objective == "masked" and "mask" not in self.special_tokens():
            raise ValueError(
                f"{name}.specials need 'mask', to hide tokens with, got {' '.join(self.specials)}; the task that takes "
                "the weights over needs the same"
            )

    def special_tokens(self) -> tuple[str, ...]:
        """Those of the task, and one to hide others with."""
        found = super().special_tokens()
        return found if self.specials or "mask" in found else ("mask", *found)

    def plain_recipe(self) -> Recipe:
        """As many steps of as many examples as the task, at a constant rate."""
        plain = super().plain_recipe()
        return dataclasses.replace(plain, schedule="constant")

    def model(self, mixer: str, seed: int) -> nn.Module:
        count = len(self.vocabulary())
        head = "language" if self.objective == "causal" else "token"
        return self.checked(
            self.encoder(mixer, seed, vocabulary=count, grid=(self.length,), head=head, outputs=count, head_hidden=())
        )

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        if split == "train" and batch_size % self.each:
            raise ValueError(f"a batch must divide by {self.each}, the sequences of an example, got {batch_size}")
        size = max(1, batch_size // self.each)
        found = super().batches(split, size, seed=seed, start=start, rank=rank, world=world)
        for step, batch in enumerate(found, start):
            x, mask = batch.x.flatten(0, -2), batch.mask.flatten(0, -2)
            if self.objective == "causal":
                y = torch.where(mask[:, 1:], x[:, 1:], IGNORED)
                yield Batch(x, nn.functional.pad(y, (0, 1), value=IGNORED), mask)
                continue
            if split == "train":
                chance = _chances(stream(HIDING, seed), step, size, self.each, self.length)[rank::world]
            else:  # by the example, whatever the size of a batch
                rows = range(step * size + rank, (step + 1) * size, world)[: len(batch.x)]
                chance = torch.cat([_chances(HIDING, row, 1, self.each, self.length) for row in rows])
            hidden = (chance.flatten(0, 1)[: len(x), : x.shape[1]] < self.share) & mask
            yield Batch(x.masked_fill(hidden, self._mask_id()), torch.where(hidden, x, IGNORED), mask)

    def _mask_id(self) -> int:
        found = self.vocabulary().special("mask")
        assert found is not None  # checked when the settings were
        return found

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(output.flatten(0, 1), batch.y.flatten(), ignore_index=IGNORED)

    def weight(self, batch: Batch) -> float:
        return int((batch.y != IGNORED).sum())

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(len(self.vocabulary()), average="micro", ignore_index=IGNORED)}

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return output.flatten(0, 1), batch.y.flatten()

    def baselines(self) -> dict[str, dict[str, float]]:
        """The token that is most frequent among the targets of the test, in its first thousand sequences."""
        count, seen, targets = torch.zeros(len(self.vocabulary()), dtype=torch.long), 0, 0
        for batch in self.batches("test", 100):
            asked = batch.y[batch.y != IGNORED]
            count += torch.bincount(asked, minlength=len(count))
            seen, targets = seen + len(batch.x), targets + len(asked)
            if seen >= 1000:
                break
        return {"most frequent token": {"accuracy": int(count.max()) / max(1, targets)}}

    def facts(self) -> dict[str, Any]:
        said = "the next token" if self.objective == "causal" else f"{self.share:.0%} of the tokens, which are hidden"
        return {**super().facts(), "targets": said}


def _chances(seed: int, index: int, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1) that follow from two numbers."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(stream(seed, index)))


@dataclasses.dataclass(frozen=True)
class ListOpsPretraining(Pretraining, ListOps):
    """Fill gaps in nested lists, or say their next token."""

    share: float = 0.1


@dataclasses.dataclass(frozen=True)
class TextPretraining(Pretraining, Text):
    """Fill gaps in film reviews, or say their next token."""


@dataclasses.dataclass(frozen=True)
class RetrievalPretraining(Pretraining, Retrieval):
    """Fill gaps in papers, or say their next token; the two of a pair are examples of their own."""

    each: ClassVar[int] = 2
