"""Mega's regime (facebookresearch/mega, examples/mega/README.lra.md): narrow layers, one gated head of attention."""

from __future__ import annotations

from typing import NamedTuple

from sequence.regimes.base import TOKENS, Count, Regime, epoch, recipe_of, row


class Row(NamedTuple):
    depth: int
    dim: int
    qk_dim: int
    hidden: int  # of values, of the feed-forward layer and of the classifier
    norm: str
    act: str  # what makes weights of scores
    batch: int
    lr: float
    decay: float
    steps: int
    warmup: int
    power: float  # of the decay to 0
    max_len: int  # distances with a bias of their own
    millions: float


TABLE = {
    "listops": Row(6, 80, 64, 160, "layer", "softmax", 64, 0.001, 0.01, 90_000, 3_000, 1.0, 2002, 0.60),
    "text": Row(4, 128, 64, 256, "scale", "softmax", 50, 0.004, 0.01, 25_000, 10_000, 1.0, 4096, 0.99),
    "retrieval": Row(6, 128, 64, 256, "scale", "softmax", 64, 0.003, 0.04, 91_960, 10_000, 1.0, 4002, 1.49),
    "image": Row(8, 160, 96, 320, "batch", "laplace", 50, 0.01, 0.02, 180_000, 9_000, 1.0, 1024, 2.84),
    "pathfinder": Row(6, 128, 64, 256, "batch", "laplace", 128, 0.01, 0.01, 250_000, 50_000, 1.0, 1024, 1.39),
    "pathx": Row(4, 64, 32, 128, "batch", "laplace", 128, 0.01, 0.01, 125_000, 25_000, 2.0, 16_384, 0.38),
}
CLASSES = {"listops": 10, "image": 10}
INPUTS: dict[str, dict[str, object]] = {
    "listops": {"length": 2048},
    "text": {"tokens": "bytes", "length": 4096, "test_as_validation": True},
    "retrieval": {"tokens": "bytes", "length": 4000},
    "image": {"mean": 0.48, "std": 0.24},
    "pathfinder": {"mean": 0.5, "std": 0.5, "img_size": 32},
    "pathx": {"mean": 0.5, "std": 0.5, "img_size": 128},
}


def mega(task: str) -> Regime:
    """Mega (arXiv 2209.10655): gated attention with moving averages, then a feed-forward layer of SiLU.

    Post-norm on texts, pre-norm with a norm at the end on images; no positions but a learned bias of every distance in
    each layer. Mean over the true length; a classifier with one hidden layer; of pairs it reads both vectors.

    Adam (0.9, 0.98), decoupled decay of every parameter, warm-up from 1e-7 and linear decay to 0 (pathx: squared),
    gradient norm of at most 1, full precision. Dropout 0.1 on texts, none on images. No seeds are stated.

    Cost: 90,000 steps of 64 (listops), 25,000 of 50 (text), 91,960 of 64 pairs (retrieval), 180,000 of 50 (image),
    250,000 of 128 (pathfinder), 125,000 of 128 (pathx, on 8 GPUs), each over all pairs of tokens.

    What is not the same here: the published moving averages forget all beyond 1,024 tokens (pathx: 4,096). On images,
    where blocks are pre-norm, the gate mixes with the normalised tokens. Dropout stands on the embedding and on the
    outputs of mixer and feed-forward layer, not within the mixer and the classifier. The published last layer has no
    bias, and pixels are scaled and shifted, which is our `nn.Linear(1, D)`.
    """
    it = row(TABLE, task, "mega")
    images = task not in TOKENS
    drop = 0.0 if images else 0.1
    spec = f'qk_dim={it.qk_dim}, hidden={it.hidden}, act="{it.act}", max_len={it.max_len}, residual=False'
    settings = {
        "dim": it.dim,
        "depth": it.depth,
        "mlp_ratio": it.hidden / it.dim,
        "act": "silu",
        "position": "none",
        "norm": it.norm,
        "prenorm": images,
        "dropout": drop,
        "embedding_dropout": drop,
        "pool": "mean",
        "embedding_std": 1.0 if images else it.dim**-0.5,
        "head_hidden": (it.hidden,),
        **({"pair_features": "concat"} if task == "retrieval" else {}),
    }
    return Regime(
        name="mega",
        task=task,
        mixer=f"mega({spec})",
        attention="attention(head_dim=16, rotary=True)",  # which divides every width
        settings={**settings, **INPUTS[task]},
        recipe=recipe_of(
            it.steps,
            it.batch,
            it.lr,
            it.warmup,
            epoch(task, it.batch),
            warmup_start=1e-7 / it.lr,
            schedule="power",
            power=it.power,
            weight_decay=it.decay,
            decayed="all",
            betas=(0.9, 0.98),
            clip=1.0,
        ),
        count=Count(it.millions, {"bias of the last layer": -CLASSES.get(task, 2)}),
        seeds=(),
        selection="best validation accuracy",
    )
