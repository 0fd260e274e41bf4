"""Language modelling: say the next byte, character or token of a text.

    matmix train lm --data input.txt --mixer "ssd"
    matmix train lm --data wikitext-2 --tokens tokenizer.json --mixer "attention(causal=True, rotary=True)"

`sequence.data.corpus` says which files are read; nothing is downloaded. Mixers that are not causal see the answer and
are refused. `sequence.generate.generate` goes on with a text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.task import Batch, Recipe, Split, Task
from matmix.ranges import Count, Depth, Whole
from sequence.data.corpus import Corpus, Stream, corpus, facts_of
from sequence.encoder import Position
from sequence.tasks.settings import LanguageSettings

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclasses.dataclass(frozen=True)
class LM(LanguageSettings, Task):
    """Say the next token of a text file.

    Training reads pieces of `length` tokens that begin anywhere. Evaluation goes through a split from end to end in
    pieces that overlap by `context` tokens: each token after the first is scored once, from what its piece has before
    it. With 0 that is from none to `length` - 1 tokens, half of it on average; with c it is at least c (but in the
    first piece), at length / (length - c) times the cost. No state is carried from piece to piece.

    Bits per byte count the bytes of the text that is scored, so they are of one unit for bytes, characters and any
    tokenizer; perplexity is that of a token and compares only runs with the same tokens.
    """

    data: str = ""
    """A text file, or a folder with train, valid and test; also packed (gz, bz2, xz, zip)."""
    tokens: str = "bytes"
    """"bytes", "characters", or the path of a tokenizer.json."""
    length: Count = 256
    """Tokens that are read at a time."""
    context: Whole = 0
    """Tokens of a piece of the evaluation that are read and not scored."""
    dim: Count = 128
    depth: Depth = 4
    position: Position = "none"

    metric: ClassVar[str] = "bits_per_byte"
    higher_is_better: ClassVar[bool] = False
    aliases: ClassVar[dict[str, str]] = {"data": "data"}

    def __post_init__(self) -> None:
        if self.context >= self.length:
            raise ValueError(f"LM.context must be from 0 to length - 1 = {self.length - 1}, got {self.context}")
        if self.norm == "batch":
            raise ValueError("LM.norm='batch' takes its statistics from later tokens too: 'layer', 'rms' or 'scale'")

    def recipe(self) -> Recipe:
        """1.2 million tokens, an epoch of tinyshakespeare."""
        return Recipe(
            steps=300, batch_size=16, lr=3e-3, lr_end=0.1, warmup=0.1, weight_decay=0.1, betas=(0.9, 0.95),
            eval_every=100, log_every=10, eval_batch_size=32,
        )  # fmt: skip

    def model(self, mixer: str, seed: int) -> nn.Module:
        size = self.corpus.coder.vocabulary
        return self.encoder(mixer, seed, vocabulary=size, grid=(self.length,), head="language", outputs=size)

    # ------------------------------------------------------------------ data

    @property
    def corpus(self) -> Corpus:
        """The text, read once."""
        if not self.data:
            raise ValueError("LM.data: which text? --data FILE, or a folder with train, valid and test")
        found = corpus(self.data, self.tokens)
        for split, stream in found.splits.items():
            if len(stream.tokens) <= self.length:
                raise ValueError(
                    f"LM.length={self.length}: {split} has {len(stream.tokens)} tokens, and length + 1 are needed"
                )
        return found

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        stream = self.corpus.splits[split]
        if split == "train":
            return self._train(stream, batch_size, seed, start, rank, world)
        return self._once(stream, batch_size, rank, world)

    def _train(self, stream: Stream, batch_size: int, seed: int, start: int, rank: int, world: int) -> Iterator[Batch]:
        step = start
        while True:
            generator = np.random.default_rng([seed, step])
            begins = generator.integers(len(stream.tokens) - self.length, size=batch_size)[rank::world]
            yield _pieces(stream, begins, self.length, np.zeros_like(begins))
            step += 1

    def _once(self, stream: Stream, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
        last = len(stream.tokens) - self.length - 1  # where the last piece begins
        begins = np.arange(0, last + self.length - self.context, self.length - self.context)
        read = np.where(begins == 0, 0, self.context)
        # The last piece ends with the text: what is scored already is read again.
        late = np.maximum(begins - last, 0)
        begins, read = begins - late, read + late
        for first in range(0, len(begins), batch_size):
            mine = slice(first + rank, min(first + batch_size, len(begins)), world)
            if len(begins[mine]):
                yield _pieces(stream, begins[mine], self.length, read[mine])

    # ------------------------------------------------------------------ scores

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        nats = nn.functional.cross_entropy(output.mT, batch.y["token"], reduction="none")
        scored = batch.y["size"] >= 0
        return (nats * scored).sum() / scored.sum()

    def weight(self, batch: Batch) -> float:
        return int((batch.y["size"] >= 0).sum())

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Nats of every token, and the bytes it stands for; -1 where it is not scored."""
        return nn.functional.cross_entropy(output.float().mT, batch.y["token"], reduction="none"), batch.y["size"]

    def example_scores(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Bits for each byte of a piece, and its bytes."""
        nats, sizes = self.prediction(output, batch)
        total, count = nats.double().masked_fill(sizes < 0, 0).sum(1), sizes.clamp(min=0).sum(1).double()
        return torch.where(count > 0, total / count / math.log(2), 0), count

    def metrics(self) -> dict[str, Metric]:
        from sequence.metrics import BitsPerByte, Perplexity

        found: dict[str, Metric] = {"bits_per_byte": BitsPerByte(), "perplexity": Perplexity()}
        return found | ({"bits_per_character": BitsPerByte(whole=True)} if self.tokens == "characters" else {})

    def baselines(self) -> dict[str, dict[str, float]]:
        """Tokens by how often they are in the training text (and once more each), whatever came before."""
        found = self.corpus
        size = found.coder.vocabulary
        counts = 1 + np.bincount(found.splits["train"].tokens, minlength=size)
        test = found.splits["test"]
        nats = torch.from_numpy(-np.log(counts / counts.sum())[test.tokens[1:]])
        sizes, metrics = torch.from_numpy(test.sizes[1:].astype(np.int64)), self.metrics()
        for metric in metrics.values():
            metric.update(nats, sizes)
        return {"frequencies": {name: float(metric.compute()) for name, metric in metrics.items()}}

    def facts(self) -> dict[str, Any]:
        return facts_of(self.corpus) | {"tokens read and not scored, of a piece of the evaluation": self.context}

    def found(self) -> str:
        tokens = {split: f"{len(stream.tokens):,}" for split, stream in self.corpus.splits.items()}
        counts = ", ".join(f"{split} {count}" for split, count in tokens.items())
        return f"{self.data}: {counts} tokens, {self.corpus.coder.vocabulary} different ones"


def _pieces(stream: Stream, begins: np.ndarray, length: int, read: np.ndarray) -> Batch:
    """Pieces of a text: what is read, and the next tokens with the bytes they stand for, -1 for the first `read`."""
    at = begins[:, None] + np.arange(length + 1)
    tokens, sizes = stream.tokens[at].astype(np.int64), stream.sizes[at[:, 1:]].astype(np.int64)
    sizes[np.arange(length) < read[:, None]] = -1
    target = {"token": torch.from_numpy(tokens[:, 1:].copy()), "size": torch.from_numpy(sizes)}
    return Batch(torch.from_numpy(tokens[:, :-1].copy()), target)
