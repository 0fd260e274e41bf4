"""GLUE: a class of a text or of a pair, from the weights of a pretraining or from scratch.

    matmix train mlm --data wikitext-2 --mixer hydra --out PRE
    matmix train glue --data glue_data --task.name sst2 --task.init-from PRE --mixer hydra
    matmix train glue --data glue_data --task.name rte --task.init-from GLUE --task.init-task mnli --mixer hydra
    matmix train glue --data glue_data --task.name cola --task.tokens PRE --mixer hydra             from scratch

`sequence.language.data.glue` says which files are read; `--recipe hydra` and others tune as published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache as keep
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from matmix.experiments.folder import read_config
from matmix.experiments.task import Batch, Recipe, Split
from matmix.ranges import Chance, Seed
from matmix.sampling import drawn
from sequence.data.faults import bad
from sequence.language import runs
from sequence.language.data import glue, glue_sets
from sequence.language.data.glue_sets import Part
from sequence.language.data.tokenizer import TRAINED, fingerprint, tokenizer
from sequence.language.recipes import glue_scores, small_glue, tuning_recipes
from sequence.language.settings import ModelSettings

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclasses.dataclass(frozen=True)
class Glue(ModelSettings):
    """One of the nine tasks of GLUE.

    The test is GLUE's dev set, as in all published numbers that are not from its server. A tenth of the training
    examples is held out for validation, so the test chooses nothing; published numbers chose on dev itself, as
    `test_as_validation` does.
    """

    name: str = "sst2"
    """cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte or wnli."""
    data: str = glue.HUB
    """A data set of the Hugging Face hub, or a folder with the released tsv files."""
    init_from: str = ""
    """Where to begin, all but the head: folder of a finished run of mlm, or of a study of some (then the run of the
    same mixer and seed), or of transformers. Empty: from scratch."""
    init_task: str = ""
    """Begin at weights that were tuned on this task of GLUE, "mnli": `init_from` then holds a run of it."""
    tokens: str = ""
    """Empty: the tokenizer of `init_from`. Else a folder of runs, whose tokenizer it is; a tokenizer.json; a folder of
    transformers; or a name of the hub."""
    pool: Literal["first", "mean", "max", "last"] = "mean"
    """What the head reads: "first" is [CLS], as in BERT."""
    pooler: bool = True
    """Through a linear layer and a tanh (BERT)."""
    classifier_dropout: Chance = 0.0
    """On what the classifier reads."""
    held_out: Chance = 0.1
    """Share of the training examples that is for validation."""
    split_seed: Seed = 0
    test_as_validation: bool = False
    """The dev set chooses the weights, as in published numbers, and all training examples are trained on."""
    buckets: bool = True
    """Batches hold texts of similar length, so that little of them is padding."""
    broken: Literal["stop", "skip"] = "stop"
    """What is done about damaged rows: stop with their file and line, or leave them out and count them."""

    metric: ClassVar[str] = "accuracy"
    """Of an instance: the first of those published."""
    aliases: ClassVar[dict[str, str]] = {"data": "data"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", glue.glue_task(self.name).metrics[0])
        if self.tokens == TRAINED:
            raise ValueError("Glue.tokens: a vocabulary is made by `matmix train mlm`; name the folder of such a run")
        if self.init_task and not self.init_from:
            raise ValueError(f"Glue.init_task={self.init_task!r} needs init_from, the folder of a run of it")
        if not self.test_as_validation and not self.held_out:
            raise ValueError(f"Glue.held_out must be above 0 without test_as_validation, got {self.held_out}")

    def title(self) -> str:
        return "-".join(filter(None, (self.name, self.protocol)))

    def plain_recipe(self) -> Recipe:
        return small_glue(self.name)

    def protocols(self) -> Mapping[str, tuple[dict[str, Any], Recipe]]:
        return tuning_recipes(self.name)

    # ------------------------------------------------------------------ the model

    def tokenizer(self) -> PreTrainedTokenizerFast:
        named = self.tokens or self.init_from
        if not named:
            raise ValueError(
                "Glue.tokens: without init_from, name a tokenizer: the folder of a run of mlm, a tokenizer.json, a "
                "folder of transformers, or a name of the hub"
            )
        return _tokenizer(named)

    def model(self, mixer: str, seed: int) -> nn.Module:
        from sequence.language import MatmixForSequenceClassification

        task = glue.glue_task(self.name)
        more = {name: getattr(self, name) for name in ("pool", "pooler", "classifier_dropout")}
        config = self.config(mixer, seed, num_labels=len(task.labels) or 1, **more)
        if not self.init_from:
            return MatmixForSequenceClassification(config)
        folder = Path(self.init_from)
        if not runs.is_run(folder):
            return runs.from_transformers(config, folder, self.tokenizer(), self.tokens)
        made = MatmixForSequenceClassification(config)
        runs.start_from(made, runs.checkpoint(folder, mixer, seed, self.init_task), self)
        return made

    # ------------------------------------------------------------------ data

    def parts(self) -> dict[str, Part]:
        """The examples of each split."""
        found = self._prepared().parts
        if self.test_as_validation:
            train, held = found["train"], found["dev"]
        else:
            train, held = glue_sets.divided(found["train"], self.held_out, self.split_seed)
        splits = {"train": train, "val": held, "test": found["dev"], **{name: found[name] for name in self.tests()}}
        for split, part in splits.items():
            if not len(part.labels):
                raise bad(self.data, 0, f"{split} of {self.name} is left without an example", "another held_out")
        return splits

    def _prepared(self) -> glue_sets.Prepared:
        return glue_sets.prepared(self.data, self.name, self.tokenizer(), self.length, self.broken, self.cache)

    def tests(self) -> tuple[str, ...]:
        return glue.parts(self.name)[2:]

    def batches(
        self, split: Split, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        part = self.parts()[split]
        pad = self.tokenizer().pad_token_id
        lengths, share = torch.from_numpy(part.rows.lengths), {"rank": rank, "world": world}
        for at in drawn(
            lengths, batch_size, train=split == "train", buckets=self.buckets, seed=seed, start=start, **share
        ):
            ids, kinds, real = part.batch(at.tolist(), pad)
            labels = torch.from_numpy(part.labels[at.numpy()])
            y = labels.float() if self.metric == "spearman" else labels.long()
            yield Batch({"input_ids": ids, "token_type_ids": kinds, "attention_mask": real.long()}, y)

    # ------------------------------------------------------------------ scores

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.x).logits
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        if batch.y.is_floating_point():
            return nn.functional.mse_loss(output.squeeze(1), batch.y)
        return nn.functional.cross_entropy(output, batch.y)

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores, or numbers of classes."""
        return (output.squeeze(1).float() if batch.y.is_floating_point() else output.argmax(1)), batch.y

    def metrics(self) -> dict[str, Metric]:
        from torchmetrics import PearsonCorrCoef, SpearmanCorrCoef
        from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy

        from sequence.metrics import Matthews

        task = glue.glue_task(self.name)
        made: dict[str, Any] = {
            "accuracy": lambda: MulticlassAccuracy(len(task.labels), average="micro"),
            "f1": BinaryF1Score,
            "matthews": Matthews,
            "spearman": SpearmanCorrCoef,
            "pearson": PearsonCorrCoef,
        }
        return {name: made[name]() for name in task.metrics}

    def baselines(self) -> dict[str, dict[str, float]]:
        """The class that is most frequent in training; of numbers their mean, whose correlation is 0."""
        train, test = (self.parts()[split].labels for split in ("train", "test"))
        if self.metric == "spearman":
            return {"mean score": dict.fromkeys(self.metrics(), 0.0)}
        most = int(np.bincount(train.astype(np.int64)).argmax())
        said, metrics = torch.full((len(test),), most), self.metrics()
        for metric in metrics.values():
            metric.update(said, torch.from_numpy(test).long())
        return {"most frequent class": {name: float(metric.compute()) for name, metric in metrics.items()}}

    def published(self, recipe: Recipe) -> dict[str, dict[str, float]]:
        """Where the tuning is the protocol's to the step, and `init_from` is a whole pretraining of the same one."""
        folder = Path(self.init_from)
        if not self.as_published(recipe) or not self.init_from or not (folder / "result.json").is_file():
            return {}
        before = read_config(folder)
        task, how = before.make_task(), before.make_recipe()
        same = isinstance(task, ModelSettings) and task.protocol == self.protocol and task.as_published(how)
        return glue_scores(self.protocol, self.name) if same else {}

    def facts(self) -> dict[str, Any]:
        found, splits, labels = self._prepared(), self.parts(), glue.glue_task(self.name).labels
        facts: dict[str, Any] = {
            "examples": {split: len(part.labels) for split, part in splits.items()},
            "validation": "the dev set, as published" if self.test_as_validation else "held out of the training set",
            "test": "the dev set of GLUE, whose own test has no public labels",
            "vocabulary": len(self.tokenizer()),
            "tokenizer": fingerprint(self.tokenizer()),
            "checksum": found.digest,
            **found.facts,
            **self.protocol_facts(),
        }
        if labels:
            counts = np.bincount(splits["test"].labels.astype(np.int64), minlength=len(labels))
            facts["share of each class (test)"] = [round(float(share), 4) for share in counts / counts.sum()]
        one = (Path(self.init_from) / "result.json").is_file() if self.init_from else False
        if self.init_from:
            run = f"run {read_config(Path(self.init_from)).key}" if one else "the run of the same mixer and seed"
            facts["begun at"] = f"{self.init_from} ({run if runs.is_run(Path(self.init_from)) else 'of transformers'})"
        return facts

    def found(self) -> str:
        sizes = ", ".join(f"{len(part.labels):,} {split}" for split, part in self.parts().items())
        where = " (validation is the test set)" if self.test_as_validation else ""
        return f"{self.name}: {self.data}: {sizes}{where}"


@keep
def _tokenizer(named: str) -> PreTrainedTokenizerFast:
    return runs.tokenizer_of(Path(named)) if runs.is_run(Path(named)) else tokenizer(named)
