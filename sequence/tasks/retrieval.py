"""Retrieval of the Long Range Arena: does one of two papers of the ACL Anthology Network cite the other?

matmix train retrieval --mixer hydra --data lra_release.gz          the packed release, read once, not unpacked
matmix train retrieval --mixer hydra --data lra_release/lra_release/tsv_data
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Recipe, Split
from matmix.ranges import Count
from sequence.data import aan_sets
from sequence.data.numbering import Numbering
from sequence.data.release import ARCHIVE, URL
from sequence.data.vocabulary import Vocabulary
from sequence.regimes.settings import RegimeSettings
from sequence.shuffling import ShuffledTest
from sequence.tasks.classes import TextSettings, class_baselines
from sequence.tasks.settings import PairSettings

if TYPE_CHECKING:
    from torchmetrics import Metric

CLASSES = 2


@dataclasses.dataclass(frozen=True)
class Retrieval(ShuffledTest, RegimeSettings, TextSettings, PairSettings):
    """Pairs of papers as bytes or characters, read by one model each; the head sees both vectors.

    Published readers cut texts to 10,000 characters and then to 4,000 tokens; that is the same as to 4,000 at once.
    The vocabulary of characters is that of the training papers, every character that occurs.
    """

    length: Count = 4000
    """The most tokens of a paper; longer ones are cut."""
    data: str = ""
    """Folder with new_aan_pairs.train.tsv, .eval.tsv and .test.tsv, or the packed release."""
    quoting: bool = False
    """Quotation marks around a field are taken away (S4 and after), instead of being part of the text (2020)."""

    metric: ClassVar[str] = "accuracy"
    aliases: ClassVar[dict[str, str]] = {"data": "data"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad == "packed":
            raise ValueError("Retrieval.pad must be 'batch' or 'length': pairs are not packed")

    def lra_name(self) -> str:
        return "retrieval"

    def plain_recipe(self) -> Recipe:
        """About one epoch of 147,086 pairs."""
        return Recipe(
            steps=5000, batch_size=32, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), warmup=0.1, log_every=50,
            eval_every=500, eval_batch_size=32,
        )  # fmt: skip

    def model(self, mixer: str, seed: int) -> nn.Module:
        count = len(self.vocabulary())
        return self.checked(
            self.encoder(mixer, seed, vocabulary=count, grid=(self.length,), head="pair", outputs=CLASSES)
        )

    def unshuffled(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """`x` and `mask` are (B, 2, L): the two papers of a pair, padded to the longer of all."""
        papers, numbering = self._papers(), self.numbering()
        pairs, labels = papers.splits[split]
        longer = papers.documents.lengths[pairs].max(1)
        for at in self.indices(split, longer, batch_size, seed, start, rank, world):
            x, mask = numbering.batch(papers.documents, pairs[at.numpy()].flatten().tolist())
            y = torch.from_numpy(labels[at.numpy()].astype(np.int64))
            yield Batch(x.unflatten(0, (-1, 2)), y, mask.unflatten(0, (-1, 2)))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(output, batch.y)

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(CLASSES, average="micro")}

    def baselines(self) -> dict[str, dict[str, float]]:
        splits = self._papers().splits
        return class_baselines(splits["train"].labels, splits["test"].labels, CLASSES)

    def vocabulary(self) -> Vocabulary:
        """What the ids mean."""
        return Vocabulary(self._papers().vocabulary, self.special_tokens())

    def numbering(self) -> Numbering:
        """How rows become ids."""
        return Numbering(self.vocabulary(), self.length, self.pad == "length")

    def _papers(self) -> aan_sets.Papers:
        if not self.data:
            raise ValueError(f"data: retrieval has none of its own; allowed: --data {ARCHIVE}, from {URL}")
        return aan_sets.prepared(self.data, self.tokens, self.room(), self.quoting, self.broken, self.cache)

    def facts(self) -> dict[str, Any]:
        papers = self._papers()
        lengths, room = papers.documents.lengths, self.room()
        shares = {split: {"pairs": len(pairs), "share that cites": round(float(labels.mean()), 4)}
                  for split, (pairs, labels) in papers.splits.items()}  # fmt: skip
        seen = {split: np.unique(pairs) for split, (pairs, _) in papers.splits.items()}
        return {
            **shares,
            "papers": len(papers.documents),
            "mean length, cut": round(float(lengths.mean()), 1),
            "share that is cut or just as long": round(float((lengths >= room).mean()), 4),
            "test papers that are in training too": round(float(np.isin(seen["test"], seen["train"]).mean()), 4),
            "vocabulary": len(self.vocabulary()),
            "checksum": papers.digest,
            **papers.facts,
            **self.regime_facts(),
        }

    def found(self) -> str:
        papers = self._papers()
        sizes = ", ".join(f"{len(pairs):,} {split}" for split, (pairs, _) in papers.splits.items())
        left = papers.facts.get("left out as damaged")
        return f"retrieval: {self.data}: {sizes} pairs of {len(papers.documents):,} papers" + (
            f"; {left} damaged rows left out" if left else ""
        )
