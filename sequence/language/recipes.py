"""Published ways to pretrain on masked words and to tune on GLUE, each a function: where it is from, what it costs, and
in what ours is another.

    matmix train mlm --recipe hydra-ablation --mixer "hydra(head_dim=128)"
    matmix train glue --recipe hydra --task.name rte --task.init-from RUN --mixer hydra

A protocol sets the sizes of the model too. Published scores stand beside a run only where it is the protocol's in
every setting and every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from matmix.experiments.task import Recipe
from sequence.language.data.glue import TASKS

Found = tuple[dict[str, Any], Recipe]
"""Settings of the task by name, and the recipe."""

HYDRA: dict[str, Any] = {
    "dim": 768, "depth": 23, "mlp_ratio": 0.0, "position": "none", "prenorm": False, "embedding_norm": True,
    "padding": "zeros",
}  # fmt: skip
"""Post-norm blocks of a mixer alone, behind BERT's embedding (`sequence.language.shapes.hydra_bert`)."""
C4: dict[str, Any] = {
    "data": "allenai/c4", "subset": "en", "streaming": True, "tokens": "bert-base-uncased", "pad": "length",
    "length": 128, "eval_rate": 0.15, "eval_hidden_share": 0.8, "eval_other_share": 0.1,
}  # fmt: skip


def pretraining(steps: int, settings: dict[str, Any]) -> Found:
    """The recipe that all of Hydra's pretraining shares: AdamW, gradients clipped at 1, 4,096 rows a step.

    Its decay of 1e-5 is of the weight itself at every step, times the schedule; here decay is times the rate of 5e-4
    too, so it is 0.02. It acts on every parameter.
    """
    return settings, Recipe(
        steps=steps, batch_size=4096, lr=5e-4, lr_end=0.02, warmup=0.06, schedule="power", power=1.0,
        weight_decay=0.02, decayed="all", betas=(0.9, 0.98), eps=1e-6, clip=1.0, precision="bf16",
        log_every=100, eval_every=1000, checkpoint_every=1000, eval_batch_size=128,
    )  # fmt: skip


def hydra_ablation() -> Found:
    """All structures of one framework at 70 M parameters (arXiv 2407.09941, tables 2 and 10).

    12 layers of 768 (800 for Toeplitz and DFT, so that they have as many parameters), rows of 128 tokens of C4, 15 % of
    the words; 24,000 steps of 4,096 rows are 12.6 billion tokens. A linear rise over 6 % of the steps, then down to
    2 %. Attention, Cauchy and low rank that depend on the data have learned positions there (--task.position learned).

    Not the same here: C4 texts longer than a row are cut into several rows, there the rest of a text is left out.
    """
    return pretraining(24_000, {**C4, **HYDRA, "depth": 12, "rate": 0.15})


def hydra() -> Found:
    """Hydra's own pretraining: 23 layers of 768, 112 M parameters, 30 % of the words in training, 15 % in evaluation.

    70,000 steps of 4,096 rows of 128 are 36.7 billion tokens. The rate is not stated (the released file has 0): here it
    is the ablation's, so no published score stands beside.
    """
    return pretraining(70_000, {**C4, **HYDRA, "rate": 0.3})


PRETRAINING: Mapping[str, Callable[[], Found]] = {"hydra": hydra, "hydra-ablation": hydra_ablation}


class Tuning(NamedTuple):
    """Of one task in Hydra's tuning."""

    lr: float
    epochs: int
    decay: float  # of the weight at every step
    batch: int


HYDRA_TUNING: Mapping[str, Tuning] = {
    "mnli": Tuning(1e-4, 2, 5e-6, 48),
    "qnli": Tuning(5e-5, 7, 1e-6, 16),
    "qqp": Tuning(5e-5, 3, 3e-6, 16),
    "rte": Tuning(1e-5, 3, 1e-6, 16),
    "sst2": Tuning(5e-5, 2, 3e-6, 16),
    "mrpc": Tuning(8e-5, 10, 8e-6, 32),
    "cola": Tuning(1e-4, 10, 5e-6, 32),
    "stsb": Tuning(3e-5, 10, 3e-6, 32),
}
ABLATION_TUNING: Mapping[str, Tuning] = {
    "mnli": Tuning(5e-5, 3, 5e-6, 48),
    "qnli": Tuning(1e-5, 10, 1e-6, 16),
    "qqp": Tuning(3e-5, 5, 3e-6, 16),
    "rte": Tuning(1e-5, 3, 1e-5, 16),
    "sst2": Tuning(3e-5, 3, 3e-6, 16),
    "mrpc": Tuning(8e-5, 10, 8e-6, 32),
    "cola": Tuning(5e-5, 10, 5e-6, 32),
    "stsb": Tuning(3e-5, 10, 3e-6, 32),
}
"""What the released code does where its settings name no rates, as those of the ablation do not."""
FROM_MNLI = ("rte", "stsb", "mrpc")
"""Tasks that Hydra and others begin at the weights that were tuned on MNLI: with `init_from` a run on MNLI."""


def steps_of(name: str, epochs: float, batch: int) -> int:
    """Steps of so many epochs of all training examples; the last, smaller batch of an epoch counts."""
    return max(1, round(epochs * -(-TASKS[name].examples // batch)))


def hydra_glue(name: str) -> Found:
    """How Hydra was tuned (arXiv 2407.09941, table 9): a rate, epochs and decay for each task.

    256 tokens; AdamW, a linear rise over 6 % of the steps and down to 0; the [CLS] token through a linear layer and a
    tanh. Batches are those of the released code. RTE, STS-B and MRPC begin at the weights of MNLI. Scores are of dev,
    which also chose what to report; means of five runs. WNLI is left out there.
    """
    return _hydra_glue(name, HYDRA_TUNING, {**HYDRA, "length": 256})


def hydra_ablation_glue(name: str) -> Found:
    """How the structures of Hydra's ablation were tuned (hydra/bert/yamls/finetune/matrix_mixer): as `hydra_glue`, with
    128 tokens, at the rates, epochs and decays that stand in the released code."""
    return _hydra_glue(name, ABLATION_TUNING, {**HYDRA, "depth": 12, "length": 128})


def _hydra_glue(name: str, table: Mapping[str, Tuning], shape: dict[str, Any]) -> Found:
    if name not in table:
        raise ValueError(f"recipe 'hydra' has no {name!r}; it has {', '.join(table)}")
    it = table[name]
    settings = {**shape, "pool": "first", "test_as_validation": True, "held_out": 0.0}
    return settings, _tuning(name, it.epochs, it.batch, it.lr, 0.06, it.decay / it.lr, (0.9, 0.98), 0.0)


def bert_glue(name: str, lr: float = 2e-5) -> Found:
    """How BERT is tuned in transformers' example (run_glue.py): 3 epochs, batches of 32, rate 2e-5, 128 tokens.

    AdamW without decay, a linear descent from the first step on, clipping at 1. BERT's paper takes the best of the
    rates 5e-5, 4e-5, 3e-5 and 2e-5 on dev, by task.
    """
    settings = {"length": 128, "pool": "first", "test_as_validation": True, "held_out": 0.0}
    return settings, _tuning(name, 3, 32, lr, 0.0, 0.0, (0.9, 0.999), 1.0)


def ponet_glue(name: str, lr: float = 1e-4, batch: int = 32) -> Found:
    """How PoNet is tuned (run_shell/2-GLUE.sh of its code): 4 epochs of 128 tokens, else as `bert_glue`.

    Published is the best of a grid on dev, rates 3e-4, 1e-4, 5e-5, 3e-5 by batches of 128, 64, 32, 16, 8; here is one
    of its twenty cells, the others are --recipe.lr and --recipe.batch-size.
    """
    settings = {"length": 128, "pool": "first", "test_as_validation": True, "held_out": 0.0}
    return settings, _tuning(name, 4, batch, lr, 0.0, 0.0, (0.9, 0.999), 1.0)


def _tuning(
    name: str, epochs: float, batch: int, lr: float, warmup: float, decay: float, betas: tuple[float, float],
    clip: float,
) -> Recipe:  # fmt: skip
    steps = steps_of(name, epochs, batch)
    every = max(1, min(steps, round(steps / epochs)))
    return Recipe(
        steps=steps, batch_size=batch, lr=lr, warmup=warmup, schedule="power", power=1.0, weight_decay=decay,
        decayed="all", betas=betas, eps=1e-6 if betas[1] < 0.99 else 1e-8, clip=clip,
        log_every=max(1, min(100, every // 5)), eval_every=every, checkpoint_every=every, eval_batch_size=64,
    )  # fmt: skip


TUNING: Mapping[str, Callable[[str], Found]] = {
    "hydra": hydra_glue,
    "hydra-ablation": hydra_ablation_glue,
    "bert": bert_glue,
    "ponet": ponet_glue,
}


def small_glue(name: str) -> Recipe:
    """For small models: three epochs, at most 1,500 steps of 32, at a rate that suits a width of 128."""
    steps = min(1500, steps_of(name, 3, 32))
    every = max(1, steps // 6)
    return Recipe(
        steps=steps, batch_size=32, lr=5e-4, warmup=0.1, weight_decay=0.02, betas=(0.9, 0.98), eps=1e-6,
        log_every=max(1, every // 5), eval_every=every, checkpoint_every=every, eval_batch_size=64,
    )  # fmt: skip


# ---------------------------------------------------------------------- what was published

_TABLE = "tables 2 and 10 of 2407.09941"
_ABLATION: Mapping[str, tuple[float, ...]] = {
    # C4 loss and accuracy in %, then QNLI, RTE, SST-2, CoLA; dd: depends on the data
    "dense": (2.05, 59.6, 76.2, 64.4, 90.8, 45.7),
    "Toeplitz": (1.97, 60.8, 79.6, 66.1, 90.9, 45.7),
    "Toeplitz, dd": (1.91, 61.9, 81.8, 67.1, 90.7, 45.3),
    "DFT": (2.46, 53.1, 70.8, 59.9, 89.8, 44.4),
    "Vandermonde": (2.46, 53.0, 61.3, 66.3, 87.4, 45.8),
    "Vandermonde, dd": (2.04, 59.7, 80.0, 67.9, 89.3, 46.0),
    "Cauchy": (2.25, 56.2, 81.3, 66.6, 88.8, 27.4),
    "Cauchy, dd": (1.94, 61.6, 84.4, 68.0, 91.0, 48.1),
    "low rank": (2.06, 59.4, 76.5, 61.5, 90.6, 49.2),
    "low rank, dd": (1.90, 62.2, 84.1, 69.1, 91.0, 47.6),
    "attention": (2.08, 59.1, 70.4, 62.3, 89.9, 49.6),
    "attention, dd": (1.87, 62.9, 85.4, 67.9, 91.2, 47.8),
    "quasiseparable": (2.03, 59.8, 78.1, 64.3, 90.2, 45.5),
    "quasiseparable, dd": (1.84, 63.3, 85.5, 69.8, 91.9, 48.4),
}
_OF_TASK = {"qnli": 2, "rte": 3, "sst2": 4, "cola": 5}
"""Tasks with one metric; of the others the paper does not say which of the two, or what mean of them, it prints."""
_HYDRA = {"qnli": 90.0, "rte": 77.5, "sst2": 93.5, "cola": 57.2}


def pretraining_scores(protocol: str) -> dict[str, dict[str, float]]:
    """Cross entropy and accuracy of a pretraining as published."""
    if protocol != "hydra-ablation":
        return {}
    return {
        f"{model}, {_TABLE}": {"cross_entropy": row[0], "accuracy": row[1] / 100} for model, row in _ABLATION.items()
    }


def glue_scores(protocol: str, name: str) -> dict[str, dict[str, float]]:
    """The score of a task as published, behind a pretraining and a tuning of this protocol."""
    metric = TASKS[name].metrics[0]
    if protocol == "hydra-ablation" and name in _OF_TASK:
        return {f"{model}, {_TABLE}": {metric: row[_OF_TASK[name]] / 100} for model, row in _ABLATION.items()}
    if protocol == "hydra" and name in _HYDRA:
        return {"Hydra, table 4 of 2407.09941": {metric: _HYDRA[name] / 100}}
    return {}


def tuning_recipes(name: str) -> dict[str, Found]:
    """By protocol, those that have this task."""
    found: dict[str, Found] = {}
    for protocol, make in TUNING.items():
        if not protocol.startswith("hydra") or name in HYDRA_TUNING:
            found[protocol] = partial(make, name)()
    return found
