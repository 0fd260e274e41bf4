"""Text classification of the Long Range Arena: is a film review good or bad, read byte by byte?

matmix train text --mixer hydra                                    stanfordnlp/imdb of the Hugging Face hub
matmix train text --mixer hydra --data FOLDER                      train and test as csv or parquet
matmix train text --mixer hydra --task.test-as-validation          as the published numbers were selected
matmix train text --data SST-2 --model "hf:bert(num_hidden_layers=2)" --task.length 128     a model of transformers
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from torch import nn

from matmix.experiments.task import Recipe, Split
from matmix.ops.seed import fork_seed
from matmix.ranges import Count, OpenShare, Seed
from sequence.data import reviews, reviews_sets
from sequence.data.labelled import Labelled
from sequence.data.vocabulary import Vocabulary
from sequence.tasks.classes import TextSettings, TokenTask
from sequence.text_model import TextModel


@dataclasses.dataclass(frozen=True)
class Text(TextSettings, TokenTask):
    """IMDb reviews (Maas et al. 2011) as bytes or characters, two classes.

    A tenth of the 25,000 training reviews is held out for validation, so the test chooses nothing. All published
    numbers chose their weights on the test set itself; `test_as_validation` does, and trains on all 25,000.

    Bytes have the ids special tokens + byte, so with the default 0 = padding and byte + 1. Characters (S4's line of
    work) have a vocabulary of those that occur `min_frequency` times in the training reviews, cut to `length`, the
    held-out ones included, as published.
    """

    architecture: str = ""
    """A model of transformers that reads the tokens in place of the encoder of the other settings, as in
    "hf:bert(hidden_size=64)"; its last states are averaged for the classifier. `--model` for short."""
    length: Count = 4096
    """The most tokens; longer reviews are cut."""
    data: str = reviews.HUB
    """A data set of the Hugging Face hub, or a folder with train and test as csv or parquet."""
    min_frequency: Count = 15
    """Of characters; rarer ones are unknown."""
    held_out: OpenShare = 0.1
    """Share of the training reviews that is for validation."""
    split_seed: Seed = 0
    test_as_validation: bool = False
    """The test reviews choose the weights, as in all published numbers."""

    classes: ClassVar[int] = len(reviews.CLASSES)
    aliases: ClassVar[dict[str, str]] = {"data": "data", "model": "architecture"}

    def model(self, mixer: str, seed: int) -> nn.Module:
        if not self.architecture:
            return super().model(mixer, seed)
        if mixer:
            raise ValueError(
                f"mixer {mixer!r}: {self.architecture} is built without one; --surgery.level module puts it there"
            )
        with fork_seed(seed, "model"):
            return TextModel(self.architecture, len(self.vocabulary()), self.classes)

    def lra_name(self) -> str:
        return "text"

    def plain_recipe(self) -> Recipe:
        """Seven epochs of 22,500 reviews."""
        return Recipe(
            steps=5000, batch_size=32, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), warmup=0.1, log_every=50,
            eval_every=500, eval_batch_size=32,
        )  # fmt: skip

    def labelled(self, split: Split) -> Labelled:
        return self._splits()[split]

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self._reviews().vocabulary, self.special_tokens())

    def _reviews(self) -> reviews_sets.Reviews:
        return reviews_sets.prepared(*self._read())

    def _read(self) -> tuple[str, str, int, int, str, str]:
        return self.data, self.tokens, self.room(), self.min_frequency, self.broken, self.cache

    def _splits(self) -> dict[str, Labelled]:
        if self.test_as_validation:
            train, test = (self._reviews().splits[split] for split in ("train", "test"))
            return {"train": train, "val": test, "test": test}
        return reviews_sets.divided(*self._read(), self.held_out, self.split_seed)

    def facts(self) -> dict[str, Any]:
        found, splits = self._reviews(), self._splits()
        room = self.room()
        cut = {split: round(float((labelled.rows.lengths > room).mean()), 4) for split, labelled in splits.items()}
        return {
            **{split: labelled.facts(self.classes) for split, labelled in splits.items()},
            "validation": "the test set, as published" if self.test_as_validation else "held out of the training set",
            "share that is cut": cut,
            "test texts that are in training too": int(np.isin(found.prints["test"], found.prints["train"]).sum()),
            "vocabulary": len(self.vocabulary()),
            "checksum": found.digest,
            **found.facts,
            **self.regime_facts(),
        }

    def found(self) -> str:
        sizes = ", ".join(f"{len(labelled.rows):,} {split}" for split, labelled in self._splits().items())
        left = self._reviews().facts.get("left out as damaged")
        return (
            f"text: {self.data}: {sizes}"
            + (" (validation is the test set)" if self.test_as_validation else "")
            + (f"; {left} damaged rows left out" if left else "")
        )
