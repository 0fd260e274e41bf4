"""Spoken words: which of 35 (or ten) words is said in a second, read sample by sample or frame by frame?

matmix train speech --mixer s4d --data FOLDER                                Speech Commands, unpacked
matmix train speech --recipe s4 --data FOLDER                                as S4's code trains on it
matmix train speech --mixer hydra --data FOLDER --task.inputs mfcc --task.words 10

The protocol is that of S4's line of work, on which LongVQ is measured too: 16,000 samples, a class a word, and the test
once more at half the rate, which no training has shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.extras import require
from matmix.experiments.task import Batch, Recipe, Split
from matmix.ranges import Count
from matmix.sampling import once, order
from sequence.data import speech, speech_sets
from sequence.data.labelled import Labelled
from sequence.regimes.settings import RegimeSettings
from sequence.regimes.speech import s4
from sequence.shuffling import ShuffledTest
from sequence.tasks.classes import check_padding, class_baselines
from sequence.tasks.settings import ClassSettings

if TYPE_CHECKING:
    from torchmetrics import Metric

HALF = "test@half"


@dataclasses.dataclass(frozen=True)
class Speech(ShuffledTest, RegimeSettings, ClassSettings):
    """Speech Commands (Warden 2018): 105,829 recordings of 35 words, 84,843 to train on by the published lists.

    Recordings that are shorter than a second are padded and masked. Where S4's code does otherwise: its ten words are
    divided at random over the order of the file system, which nobody can repeat, and shorter ones are left out; its 35
    words are normalised place by place (each of the 16,000 with a mean of its own), here all alike.

    At half the rate mixers in continuous time (`s4d`, `s5`) take steps that are twice as long; the others read what
    comes.
    """

    data: str = speech.HUB
    """A folder with one folder a word and the published lists, a folder of parquet files, or a data set of the hub."""
    words: Literal["35", "10", "folders"] = "35"
    """Classes: all words, the ten commands, or whatever folders there are."""
    inputs: Literal["wave", "mfcc"] = "wave"
    """Samples, or 20 coefficients of the spectrum for every hundred of them."""
    length: Count = 16_000
    """The most samples; longer recordings are cut."""
    sample_rate: Count = 16_000
    """In Hz; recordings of another rate are damaged ones."""
    half: Literal["resample", "decimate"] = "resample"
    """How half the rate is made: with a low-pass filter, or by every second sample, as published, where what stands
    above 4 kHz folds back."""
    pad: Literal["batch", "length"] = "batch"
    """Batches are as long as their longest recording, or always `length`, for mixers of a fixed length."""
    broken: Literal["stop", "skip"] = "stop"
    """What is done about damaged recordings: stop with their file, or leave them out and count them."""
    cache: str = ""
    """Folder for prepared data; empty: that of the variable MATMIX_CACHE, else the platform's for caches."""

    metric: ClassVar[str] = "accuracy"
    aliases: ClassVar[dict[str, str]] = {"data": "data"}
    regimes: ClassVar = {"s4": s4}

    # ------------------------------------------------------------------ the data

    def _prepared(self) -> speech_sets.Speech:
        require("soundfile")
        return speech_sets.prepared(self.data, self.words, self.inputs, self.sample_rate, self.broken, self.cache)

    def labelled(self, split: Split) -> Labelled:
        """Prepared recordings and classes of a split."""
        return self._prepared().splits[split]

    @property
    def channels(self) -> int:
        return speech_sets.COEFFICIENTS if self.inputs == "mfcc" else 1

    @property
    def tokens(self) -> int:
        """L of the longest input: samples or frames."""
        return speech_sets.frames(self.length) if self.inputs == "mfcc" else self.length

    def tests(self) -> tuple[str, ...]:
        return (*super().tests(), HALF) if self.inputs == "wave" else super().tests()

    def unshuffled(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        rows, labels = self.labelled("test" if split == HALF else split)
        if split == "train":
            indices = order(len(rows), batch_size, seed=seed, start=start, rank=rank, world=world)
        else:
            indices = once(len(rows), batch_size, rank=rank, world=world)
        found = self._prepared()
        for at in indices:
            some = [rows[index].reshape(-1, self.channels)[: self.tokens] for index in at.tolist()]
            lengths = torch.tensor([len(row) for row in some])
            width = self.tokens if self.pad == "length" else int(lengths.max())
            x = torch.zeros(len(some), width, self.channels)
            for into, values in zip(x, some, strict=True):
                into[: len(values)] = torch.from_numpy(speech_sets.scaled(values, found.mean, found.std))
            y = torch.from_numpy(labels[at.numpy()].astype(np.int64))
            if split == HALF:
                x, lengths = halved(x, self.half), (lengths + 1) // 2
            mask = torch.arange(x.shape[1]) < lengths.unsqueeze(1)
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)  # a filter rings on behind the end
            # The rate travels with the targets: a model's inputs are the same at any rate.
            yield Batch(x, (y, torch.full_like(y, 2)) if split == HALF else y, mask)

    # ------------------------------------------------------------------ training and scores

    def lra_name(self) -> str:
        return "speech"

    def plain_recipe(self) -> Recipe:
        """Eight epochs of the 35 words; a step of 16 x 16,000 samples takes a GPU tens of milliseconds."""
        return Recipe(
            steps=42_000, batch_size=16, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), warmup=0.1, log_every=100,
            eval_every=5300, eval_batch_size=32,
        )  # fmt: skip

    def model(self, mixer: str, seed: int) -> nn.Module:
        outputs = len(self._prepared().classes)
        made = self.encoder(mixer, seed, channels=self.channels, grid=(self.tokens,), head="class", outputs=outputs)
        check_padding(made, self.pad)
        return made

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        if isinstance(batch.y, Tensor):
            return super().forward(model, batch)
        with longer_steps(model, int(batch.y[1][0])):
            return super().forward(model, batch)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(*self.prediction(output, batch))

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return output, batch.y if isinstance(batch.y, Tensor) else batch.y[0]

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(len(self._prepared().classes), average="micro")}

    def baselines(self) -> dict[str, dict[str, float]]:
        classes = len(self._prepared().classes)
        return class_baselines(self.labelled("train").labels, self.labelled("test").labels, classes)

    # ------------------------------------------------------------------ words

    def facts(self) -> dict[str, Any]:
        found, facts = self._prepared(), {}
        for split, part in found.splits.items():
            lengths = part.rows.lengths // self.channels
            facts[split] = {
                "examples": len(part.rows), "longest": int(lengths.max()),
                "share that is cut": round(float((lengths > self.tokens).mean()), 4),
            }  # fmt: skip
        half = {"half the rate": self.half} if HALF in self.tests() else {}
        return {
            **facts, "classes": list(found.classes), "length": self.tokens, "checksum": found.digest, **half,
            **found.facts, **self.regime_facts(),
        }  # fmt: skip

    def found(self) -> str:
        sizes = ", ".join(f"{len(part.rows):,} {split}" for split, part in self._prepared().splits.items())
        left = self._prepared().facts.get("left out as damaged")
        return f"speech: {self.data}: {sizes}" + (f"; {left} damaged recordings left out" if left else "")


def halved(wave: Tensor, how: str) -> Tensor:
    """Waves (B, L, 1), zero behind their ends, at half the rate: (B, ceil(L / 2), 1)."""
    if how == "decimate":
        return wave[:, ::2]
    require("torchaudio")
    from torchaudio.functional import resample

    return resample(wave.squeeze(-1), 2, 1).unsqueeze(-1)


@contextmanager
def longer_steps(model: nn.Module, factor: int) -> Iterator[None]:
    """Let mixers in continuous time take steps so many times as long as in training."""
    timed = [module for module in model.modules() if hasattr(module, "time_scale")]
    before = [module.time_scale for module in timed]
    for module in timed:
        module.time_scale = module.time_scale * factor  # type: ignore[assignment, operator]
    try:
        yield
    finally:
        for module, scale in zip(timed, before, strict=True):
            module.time_scale = scale
