"""PoNet's pretraining: hidden words, and what two texts are to each other.

    matmix train mlm-structure --data sentences.txt --mixer "ponet(heads=4)"

A line of a file, or a row of a table, is a sentence: pairs are made of neighbouring ones. `matmix train glue` goes on
with the weights, as with those of `mlm`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache as keep
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.experiments.task import Batch, Recipe, Split
from matmix.ranges import Count
from sequence.data.labels import IGNORED
from sequence.language.data.masking import Draws, Shares, masked
from sequence.language.data.pairs import Pairs, prepared_pairs
from sequence.language.data.windows import Pad, ordinary
from sequence.language.mlm import MLM
from sequence.language.structure import RELATIONS, batch_of


@dataclasses.dataclass(frozen=True)
class MLMStructure(MLM):
    """`mlm` on pairs of texts, which are in order, swapped or strangers: which of these is the second target.

    The loss is the sum of two means, over the words and over the pairs; both are logged and scored apart ("loss.words",
    "loss.relation", ln 3 = 1.10 at chance). A pair counts by its hidden words, so that both are means over the same and
    neither parts of a batch nor processes change a step; published is the plain mean over the pairs of a device.
    """

    pad: Pad = "batch"
    """Pairs are padded to the longest of their batch, or to `length`."""
    draws: Count = 5
    """How often the training texts are parted into pairs and matched anew; published are 5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pad == "packed":
            raise ValueError("MLMStructure.pad must be 'batch' or 'length': a row is a pair of texts, got 'packed'")
        if self.streaming:
            raise ValueError("MLMStructure.streaming: pairs are drawn of all texts; got True, allowed: False")

    def protocols(self) -> Mapping[str, tuple[dict[str, Any], Recipe]]:
        return {"ponet": ponet()}

    def model(self, mixer: str, seed: int) -> nn.Module:
        from sequence.language import MatmixForPreTraining

        return MatmixForPreTraining(self.config(mixer, seed))

    def windows(self, split: Split) -> Pairs:  # type: ignore[override]
        return _pairs(self)[split]

    def _posed(self, rows: list[Any], drawn: Draws, rate: float, shares: Shares) -> Batch:
        tokens = self.tokenizer()
        x = batch_of(rows, int(tokens.pad_token_id), self.length if self.pad == "length" else 0)
        relation = x.pop("next_sentence_label")
        x["input_ids"], words = masked(x["input_ids"], drawn, ordinary(tokens), tokens.mask_token_id, rate, shares)
        return Batch(x, {"words": words, "relation": relation})

    def words(self, batch: Batch) -> Tensor:
        words: Tensor = batch.y["words"]
        return words

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Logits of the hidden words (n, V), and of the relations (B, 3)."""
        output = model(**batch.x, places=self.words(batch) != IGNORED)
        return output.prediction_logits, output.seq_relationship_logits

    def loss(self, output: tuple[Tensor, Tensor], batch: Batch) -> dict[str, Tensor]:  # type: ignore[override]
        words, relation = output
        hidden = (self.words(batch) != IGNORED).sum(1)
        each = F.cross_entropy(relation, batch.y["relation"], reduction="none")
        return {"words": super().loss(words, batch), "relation": (each * hidden).sum() / hidden.sum()}

    def prediction(self, output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the words alone."""
        return super().prediction(output[0] if isinstance(output, tuple) else output, batch)

    def facts(self) -> dict[str, Any]:
        counts = torch.bincount(torch.from_numpy(self.windows("train").relations).long(), minlength=len(RELATIONS))
        return {**super().facts(), "pairs of training": dict(zip(RELATIONS, counts.tolist(), strict=True))}


@keep
def _pairs(task: MLMStructure) -> dict[str, Pairs]:
    return prepared_pairs(
        task.prepared(), task.tokenizer(), length=task.length, draws=task.draws, name=task.data, cache=task.cache
    )


def ponet() -> tuple[dict[str, Any], Recipe]:
    """PoNet base (arXiv 2110.02442; run_shell/1-pretrain_bookcorpus_wikipedia.sh of its code), for `ponet(heads=12)`.

    12 post-norm layers of 768; pairs of 512 tokens of BookCorpus and Wikipedia, five draws, 15 % of the words; AdamW
    without decay at 1e-4, 5,000 steps up, then down to 0 over 500 epochs, batches of 4 x 48, clipping at 1, half
    precision. Here `data` has to be given, and the steps are a million (192 million pairs), since the published ones
    hang on the size of the data.
    """
    settings: dict[str, Any] = {
        "dim": 768, "depth": 12, "mlp_ratio": 4.0, "prenorm": False, "embedding_norm": True, "dropout": 0.1,
        "embedding_dropout": 0.1, "length": 512, "tokens": "bert-base-uncased", "rate": 0.15, "draws": 5,
    }  # fmt: skip
    return settings, Recipe(
        steps=1_000_000, batch_size=192, lr=1e-4, warmup=0.005, schedule="power", power=1.0, weight_decay=0.0,
        betas=(0.9, 0.999), eps=1e-8, clip=1.0, precision="bf16", log_every=100, eval_every=5000,
        checkpoint_every=5000, eval_batch_size=64,
    )  # fmt: skip
