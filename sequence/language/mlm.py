"""Masked language modelling: say the words of a text that are hidden.

    matmix train mlm --data wikitext-2 --mixer hydra
    matmix train mlm --data "texts/*.txt" --task.tokens bert-base-uncased --mixer "attention(head_dim=64)"
    matmix train mlm --recipe hydra --mixer hydra                     streams C4, as published

`sequence.language.data.texts` says what is read. `matmix train glue` goes on with the weights, and
`matmix save-pretrained --run RUN --out FOLDER` makes a folder of transformers of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache as keep
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from matmix.experiments.task import Batch, Recipe, Split, example_means
from matmix.ranges import Count, OpenShare, Share
from matmix.sampling import once, order
from sequence.data.faults import BadData
from sequence.data.labels import IGNORED
from sequence.data.ragged import Ragged
from sequence.language.data.masking import Draws, Shares, draws, masked
from sequence.language.data.texts import Texts, texts
from sequence.language.data.tokenizer import TRAINED, fingerprint, tokenizer
from sequence.language.data.windows import (
    AROUND,
    Pad,
    Prepared,
    encoded,
    ordinary,
    prepared,
    rows_of,
    streamed,
    windows,
)
from sequence.language.recipes import PRETRAINING, pretraining_scores
from sequence.language.settings import ModelSettings

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclasses.dataclass(frozen=True)
class MLM(ModelSettings):
    """Say the hidden words of a text.

    Of every step `rate` of the words are targets, drawn anew by seed and step: 80 % of them are shown as [MASK], 10 %
    as another word, 10 % as they are. Special tokens are never targets and never put in the place of a word. In
    validation and test the targets are the same each time, `eval_rate` of the words, and all of them are hidden;
    published scores are with 80, 10 and 10 % there too.
    """

    data: str = ""
    """A text file, a pattern of some, a folder, or a data set of the Hugging Face hub."""
    subset: str = ""
    """Configuration of a data set of the hub, such as "en" of allenai/c4."""
    column: str = "text"
    """Of a data set that is a table."""
    streaming: bool = False
    """Read a table as it comes, in its order, blocks of it shuffled; nothing is prepared."""
    held_out: Count = 1000
    """Texts of validation and of test that are read of a stream, or taken from the beginning of the training texts
    where a table has no such split."""
    tokens: str = TRAINED
    """"wordpiece", made from the training texts; a tokenizer.json; a folder of transformers; or a name of the hub."""
    vocabulary: Count = 4000
    """The most words of "wordpiece"."""
    pad: Pad = "packed"
    """"packed": texts one behind the other, cut into full rows of `length`. Else each row is of one text: padded to the
    longest of its batch ("batch"), or to `length`."""
    rate: OpenShare = 0.15
    """Share of the words that are targets in training."""
    eval_rate: OpenShare = 0.15
    """In validation and test."""
    hidden_share: Share = 0.8
    """Of the targets of training, shown as [MASK]."""
    other_share: Share = 0.1
    """Of the targets of training, shown as another word."""
    eval_hidden_share: Share = 1.0
    """`hidden_share` of validation and test. Where targets are shown as they are, 0.8 and 0.1, a model that mixes
    nothing comes below the frequencies of words (5.9 nats of 6.3): half of the words shown there are the answer."""
    eval_other_share: Share = 0.0
    """`other_share` of validation and test."""

    metric: ClassVar[str] = "cross_entropy"
    higher_is_better: ClassVar[bool] = False
    aliases: ClassVar[dict[str, str]] = {"data": "data"}

    def __post_init__(self) -> None:
        for prefix in ("", "eval_"):
            shares = (getattr(self, f"{prefix}hidden_share"), getattr(self, f"{prefix}other_share"))
            if sum(shares) > 1:
                names = f"{prefix}hidden_share and {prefix}other_share"
                raise ValueError(f"MLM.{names} must be at most 1 together, got {shares}")
        if self.streaming and self.tokens == TRAINED:
            raise ValueError(
                f"MLM.tokens must name a tokenizer with streaming=True, for a stream is read as it comes, and "
                f"{self.tokens!r} reads all texts first"
            )

    def plain_recipe(self) -> Recipe:
        """Two million tokens in rows of 128, in many small steps: large ones stay at word frequencies for long."""
        return Recipe(
            steps=2000, batch_size=8, lr=4e-3, warmup=0.1, weight_decay=0.02, betas=(0.9, 0.98), eps=1e-6,
            eval_every=250, log_every=25, eval_batch_size=64,
        )  # fmt: skip

    def protocols(self) -> Mapping[str, tuple[dict[str, Any], Recipe]]:
        return {name: make() for name, make in PRETRAINING.items()}

    def model(self, mixer: str, seed: int) -> nn.Module:
        from sequence.language import MatmixForMaskedLM

        return MatmixForMaskedLM(self.config(mixer, seed))

    # ------------------------------------------------------------------ data

    def texts(self) -> Texts:
        """What is read."""
        return texts(
            self.data, config=self.subset, column=self.column, streaming=self.streaming, held_out=self.held_out
        )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        source = (self.data, self.subset, self.column, self.held_out) if self.tokens == TRAINED else ("", "", "text", 1)
        return _tokenizer(self.tokens, self.vocabulary, self.cache, *source)

    def prepared(self) -> Prepared:
        """All texts as ids; of a stream validation and test alone."""
        found = self.texts()
        if self.streaming:
            return _in_memory(self)
        return _prepared(self, str(found.key))

    def windows(self, split: Split) -> Ragged:
        """The windows of a split."""
        return _windows(self, split)

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        if split == "train":
            return self._train(batch_size, seed, start, rank, world)
        return self._once(split, batch_size, rank, world)

    def _train(self, batch_size: int, seed: int, start: int, rank: int, world: int) -> Iterator[Batch]:
        step = start
        for rows in self._rows(batch_size, seed, start):
            drawn = draws(seed, step, batch_size, self.length)
            shares = Shares(self.hidden_share, self.other_share)
            yield self._posed(rows[rank::world], Draws(*(part[rank::world] for part in drawn)), self.rate, shares)
            step += 1

    def _rows(self, batch_size: int, seed: int, start: int) -> Iterator[list[np.ndarray]]:
        """The windows of whole batches."""
        if self.streaming:
            found = self.texts()
            yield from streamed(
                found.splits["train"], self.tokenizer(), self.length - AROUND, self.pad, found.names["train"],
                batch_size, seed=seed, start=start,
            )  # fmt: skip
        rows = self.windows("train")
        for at in order(len(rows), batch_size, seed=seed, start=start):
            yield [rows[index] for index in at.tolist()]

    def _once(self, split: Split, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
        rows = self.windows(split)
        for at in once(len(rows), batch_size, rank=rank, world=world):
            drawn = [draws(0, index, 1, self.length) for index in at.tolist()]  # by the row, whatever the batch
            whole = Draws(*(torch.cat(part) for part in zip(*drawn, strict=True)))
            shares = Shares(self.eval_hidden_share, self.eval_other_share)
            yield self._posed([rows[index] for index in at.tolist()], whole, self.eval_rate, shares)

    def _posed(self, rows: list[np.ndarray], drawn: Draws, rate: float, shares: Shares) -> Batch:
        tokens = self.tokenizer()
        ids, mask = rows_of(rows, tokens, self.length if self.pad == "length" else 0)
        x, y = masked(ids, drawn, ordinary(tokens), tokens.mask_token_id, rate, shares)
        if mask is None:
            return Batch({"input_ids": x}, y)
        return Batch({"input_ids": x, "attention_mask": mask.long()}, y)

    # ------------------------------------------------------------------ scores

    def words(self, batch: Batch) -> Tensor:
        """The targets (B, L), `IGNORED` where there is none."""
        targets: Tensor = batch.y
        return targets

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (n, V) of the targets alone, in their order: the decoder is most of a small model's cost."""
        logits: Tensor = model(**batch.x, places=self.words(batch) != IGNORED).logits
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(*self.prediction(output, batch))

    def weight(self, batch: Batch) -> float:
        return int((self.words(batch) != IGNORED).sum())

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        words = self.words(batch)
        return output.float(), words[words != IGNORED]

    def example_scores(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The cross entropy of each row of tokens, of as many words as are hidden in it."""
        words = self.words(batch)
        hidden = words != IGNORED
        nats = torch.zeros(words.shape, device=words.device)
        nats[hidden] = nn.functional.cross_entropy(*self.prediction(output, batch), reduction="none")
        return example_means(nats, hidden, len(words))

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        from sequence.metrics import CrossEntropy

        accuracy = MulticlassAccuracy(len(self.tokenizer()), average="micro", validate_args=False)
        return {"cross_entropy": CrossEntropy(), "accuracy": accuracy}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Words by how often they are in the training texts (and once more each), whatever stands around them."""
        size = len(self.tokenizer())
        counts = self._counts(size).double() + 1
        counts[~ordinary(self.tokenizer())] = 0  # never a target
        logits, metrics = counts.log(), self.metrics()
        for batch in self.batches("test", 64):
            words = self.words(batch)
            asked = words[words != IGNORED]
            for metric in metrics.values():
                metric.update(logits.expand(len(asked), -1), asked)
        return {"unigram": {name: float(metric.compute()) for name, metric in metrics.items()}}

    def _counts(self, size: int) -> Tensor:
        if not self.streaming:
            return torch.from_numpy(np.bincount(self.prepared().splits["train"].values, minlength=size))
        rows = next(streamed(
            self.texts().splits["train"], self.tokenizer(), self.length - AROUND, self.pad, self.data, 8192, seed=0
        ))  # fmt: skip
        return torch.from_numpy(np.bincount(np.concatenate(rows), minlength=size))

    def published(self, recipe: Recipe) -> dict[str, dict[str, float]]:
        return pretraining_scores(self.protocol) if self.as_published(recipe) else {}

    def facts(self) -> dict[str, Any]:
        tokens = self.tokenizer()
        return {
            "data": self.texts().names,
            "tokens": {split: len(rows.values) for split, rows in self.prepared().splits.items()},
            "rows": {split: len(self.windows(split)) for split in self.prepared().splits},
            "vocabulary": len(tokens),
            "tokenizer": fingerprint(tokens),
            "checksum": self.prepared().digest,
            "targets": f"{self.rate:.0%} of the words in training, {self.eval_rate:.0%} in validation and test",
            **self.protocol_facts(),
        }

    def found(self) -> str:
        counts = ", ".join(f"{split} {len(rows.values):,}" for split, rows in self.prepared().splits.items())
        return f"{self.data}: {counts} tokens, {len(self.tokenizer()):,} different ones"


@keep
def _tokenizer(
    tokens: str, vocabulary: int, cache: str, data: str, subset: str, column: str, held_out: int
) -> PreTrainedTokenizerFast:
    if tokens != TRAINED:
        return tokenizer(tokens)
    found = texts(data, config=subset, column=column, held_out=held_out)
    return tokenizer(tokens, texts=found.splits["train"], key=found.key, vocabulary=vocabulary, cache=cache)


@keep
def _prepared(task: MLM, key: str) -> Prepared:
    return prepared(task.texts(), task.tokenizer(), task.cache)


@keep
def _in_memory(task: MLM) -> Prepared:
    """Of a stream: as many texts of validation and test as are held out."""
    from itertools import islice

    tokens, splits = task.tokenizer(), {}
    for split in ("val", "test"):
        some = islice(task.texts().splits[split](), task.held_out)
        rows = [np.append(ids, tokens.sep_token_id) for ids in encoded(some, tokens)]
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        values = np.concatenate([np.zeros(0, np.int64), *rows])
        splits[split] = Ragged(values, np.concatenate(([0], ends[:-1])).astype(np.int64), ends)
    return Prepared(splits, "not of a stream")


@keep
def _windows(task: MLM, split: Split) -> Ragged:
    rows, name = task.prepared().splits, task.texts().names
    if split not in rows:
        raise BadData(f"data: {task.data} has no {split}; allowed: {', '.join(rows)}")
    return windows(rows[split], task.length - AROUND, task.pad, name[split])
