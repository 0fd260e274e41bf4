"""MAD: six small tasks that tell layers apart before anything large is trained (Poli et al. 2024, arXiv 2403.17844).

    matmix train mad --task.kind selective_copying --mixer "ssd(d_state=4)"

recall              key value key value ...: say the value where a key comes again
fuzzy_recall        the same with keys and values of one to three tokens
noisy_recall        the same with tokens among them that mean nothing
selective_copying   repeat the tokens that stand among blanks, in their order
memorization        the value of a key is the same in all rows, and stands in none
compression         say all tokens from the last one's vector

Training rows and test rows are the published ones (`sequence.data.mad`). A run is one setting of one kind at one
learning rate and weight decay; `sequence.tasks.mad_grid` has the settings, the sweep and the score.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from matmix.experiments.task import Recipe, Task
from matmix.ranges import Amount, Chance, Count, Seed, Whole
from sequence.data.labels import IGNORED
from sequence.data.mad import KINDS, SEED, MadSettings, mad
from sequence.encoder import Head, Position
from sequence.layers.block import Act
from sequence.layers.norms import Norm
from sequence.layers.readout import Readout
from sequence.tasks.tokens import TokenTask

if TYPE_CHECKING:
    from torchmetrics import Metric

Kind = Literal["recall", "fuzzy_recall", "noisy_recall", "selective_copying", "memorization", "compression"]

BASELINES: dict[str, dict[str, Any]] = {
    "recall": {"vocabulary": 16, "length": 128},
    "fuzzy_recall": {"vocabulary": 16, "length": 128, "motif": 3},
    "noisy_recall": {"vocabulary": 32, "length": 128, "noise": 0.2, "noise_vocabulary": 16},
    "selective_copying": {"vocabulary": 16, "length": 256, "copied": 16},
    "memorization": {"vocabulary": 256, "length": 32, "train_examples": 256},
    "compression": {"vocabulary": 16, "length": 32},
}
"""The published size of each kind; 12,800 training rows where it does not say another number."""
FACTORS = {
    "noise": ("noisy_recall", "fuzzy_recall"),
    "noise_vocabulary": ("noisy_recall", "fuzzy_recall"),
    "motif": ("fuzzy_recall",),
    "copied": ("selective_copying",),
}
"""Which kinds have a setting that not all of them have."""


@dataclasses.dataclass(frozen=True)
class Mad(TokenTask):
    """One of the six tasks of MAD; a setting that is not given has the published value of its kind.

    The model is MAD's: width 128, two mixers with a gated MLP behind each, RMSNorm, no position embedding (attention
    has rotary positions there: "attention(head_dim=8, causal=True, rotary=True)"). Recall is learnt by saying the next
    token everywhere, so its mixers must be causal.

    "accuracy" is the published one: the recall of each id that is asked or said, averaged over these ids, of each
    batch, averaged over the batches (of 128 there). "micro" is the share of labels that are said.
    """

    kind: Kind = "recall"
    vocabulary: Count | None = None
    length: Count | None = None
    """Nominal: rows of recall are one token shorter, as they are shifted."""
    train_examples: Count | None = None
    noise: Chance | None = None
    """Share of the slots that hold noise (noisy_recall, fuzzy_recall)."""
    noise_vocabulary: Whole | None = None
    """Ids that are noise."""
    motif: Count | None = None
    """Longest key and value, in tokens (fuzzy_recall)."""
    copied: Count | None = None
    """Tokens to repeat (selective_copying)."""
    eval_examples: Count = 1280
    test_as_validation: bool = False
    """Choose the weights on the test rows, as published; else on as many further rows, drawn after them."""
    data_seed: Seed = SEED
    """The published rows are those of 12345."""
    dim: Count = 128
    mlp_ratio: Amount = 2.75
    glu: bool = True
    act: Act = "silu"
    norm: Norm = "rms"
    position: Position = "none"
    embedding_std: Amount = 0.02

    def __post_init__(self) -> None:
        for name, kinds in FACTORS.items():
            if getattr(self, name) is not None and self.kind not in kinds:
                given = f"got {name}={getattr(self, name)!r} with kind={self.kind!r}"
                raise ValueError(f"Mad.{name} is a setting of {' and '.join(kinds)} only, {given}")
        self.settings.check(self.kind)

    @property
    def _sizes(self) -> dict[str, Any]:
        """The published size of this kind, and what is set instead."""
        names = ("vocabulary", "length", "train_examples", *FACTORS)
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {"train_examples": 12_800, **BASELINES[self.kind], **given}

    @property
    def settings(self) -> MadSettings:
        return MadSettings(**{name: value for name, value in self._sizes.items() if name != "train_examples"})

    @property
    def ids(self) -> int:
        return self.settings.vocabulary

    @property
    def width(self) -> int:
        return self.settings.length - (self.kind in ("recall", "noisy_recall"))

    @property
    def head(self) -> Head:
        return "language" if self.kind.endswith("recall") else "token"

    def recipe(self) -> Recipe:
        """The published training at a middle rate: 200 epochs at a constant rate, no warm-up, no clipping; none after
        an epoch with an accuracy of 0.999.

        The paper has a cosine; the code has one too, under a key that its trainer ignores.
        """
        count = self._sizes["train_examples"]
        batch = min(128, count)
        epoch = count // batch
        return Recipe(
            steps=200 * epoch, batch_size=batch, lr=5e-4, warmup=0.0, schedule="constant", weight_decay=0.0,
            betas=(0.9, 0.999), clip=0.0, eval_every=epoch, eval_batch_size=128, checkpoint_every=5 * epoch,
            stop_at=0.999,
        )  # fmt: skip

    def named_recipe(self, name: str) -> tuple[Task, Recipe]:
        """ "published": weights are chosen on the test rows, in bfloat16, where nothing else is changed."""
        if name == "published":
            task = dataclasses.replace(self, test_as_validation=True)
            return task, dataclasses.replace(task.recipe(), precision="bf16")
        if name != "default":
            raise ValueError(f"Mad has no recipe {name!r}; it has: default, published")
        return self, self.recipe()

    def model(self, mixer: str, seed: int) -> nn.Module:
        if self.kind != "compression":
            return super().model(mixer, seed)
        encoder = self.encoder(
            mixer, seed, vocabulary=self.ids, grid=(self.width,), head="class", pool="last", outputs=1, final_norm=False
        )
        sizes = {"dim": self.dim, "length": self.width, "outputs": self.ids}
        return Readout(encoder, **sizes, norm=self.norm, seed=seed)

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        counts = (
            self._sizes["train_examples"],
            self.eval_examples,
            0 if self.test_as_validation else self.eval_examples,
        )
        found = mad(KINDS[self.kind], self.settings, *counts, seed=self.data_seed)
        return {"val": found["test"], **found}

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        from sequence.metrics import BatchMacroAccuracy

        micro = MulticlassAccuracy(self.ids, average="micro", ignore_index=IGNORED)
        return {"accuracy": BatchMacroAccuracy(self.ids, IGNORED), "micro": micro}

    def baselines(self) -> dict[str, dict[str, float]]:
        """Any one of the ids that are ever asked for, and the one that is asked for most often in the test."""
        labels = self.data("test")[1]
        counts = torch.bincount(labels[labels != IGNORED], minlength=self.ids).double()
        asked = int((counts > 0).sum())
        return {
            "chance": {"accuracy": 1 / asked, "micro": 1 / asked},
            "most frequent answer": {"accuracy": 1 / asked, "micro": (counts.max() / counts.sum()).item()},
        }

    def facts(self) -> dict[str, Any]:
        labels = self.data("test")[1]
        return super().facts() | {
            "labels of a test row": round((labels != IGNORED).sum().item() / len(labels), 1),
            "weights are chosen on": "the test rows, as published" if self.test_as_validation else "rows of their own",
        }
