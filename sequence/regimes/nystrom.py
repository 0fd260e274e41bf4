"""The regime of Nystromformer's code (mlpen/Nystromformer, LRA/code), which PoNet shares: 2 layers, 64 wide."""

from __future__ import annotations

from typing import NamedTuple

from sequence.regimes.base import TOKENS, Count, Regime, recipe_of, row


class Row(NamedTuple):
    length: int  # to which every input is padded
    vocabulary: int  # rows of the published embedding
    batch: int
    steps: int
    warmup: int
    every: int  # steps between two validations
    millions: float


TABLE = {
    "listops": Row(2048, 32, 32, 5_000, 1_000, 50, 0.21),
    "text": Row(4096, 512, 32, 20_000, 8_000, 500, 0.37),
    "retrieval": Row(4096, 512, 32, 30_000, 800, 300, 0.40),
    "image": Row(1024, 512, 256, 35_000, 175, 175, 0.18),
    "pathfinder": Row(1024, 512, 256, 62_400, 312, 312, 0.17),
}
DIM = 64
INPUTS: dict[str, dict[str, object]] = {
    "listops": {},
    "text": {"tokens": "bytes", "test_as_validation": True},
    "retrieval": {"tokens": "bytes", "quoting": False},
    "image": {"inputs": "tokens", "split": "order", "black_is_padding": True},
    "pathfinder": {"inputs": "tokens", "black_is_padding": True, "img_size": 32},
}


def nystrom(task: str) -> Regime:
    """Two layers of width 64 with two heads of 32 (arXiv 2102.03902; PoNet, 2110.02442, compares in it).

    Pre-norm Transformer with learned positions, which are its own, so its attention has no rotary ones. The mean is
    over the padded length; one hidden layer of 128 in the head; of pairs it reads [a, b, a * b, a - b]. Images are grey
    levels as tokens, of which black ones, about 65 % of pathfinder, count as padding.

    AdamW, eps 1e-6, no decay, one cycle with straight lines: from lr / 25 to 1e-4 in the warm-up and down to
    lr / 250,000, beta1 from 0.95 to 0.85 and back. No clipping, no seed.

    Cost: 5,000 steps of 32 (listops: 1.7 epochs), 20,000 of 32 (text: 25.6), 30,000 of 32 pairs (retrieval: 6.5),
    35,000 of 256 (image: 199), 62,400 of 256 (pathfinder: 100). There is no pathx.

    What is not the same here: the published code runs under fp16 autocast (`--recipe.precision fp16`), drops attention
    weights, has room for 32 or 512 kinds of tokens whatever there are, and leaves out the last, incomplete batch of an
    unseeded shuffle in validation and test. Its documents are cut to 4,000 bytes and then padded; here the whole length
    is of bytes.
    """
    it = row(TABLE, task, "nystrom")
    settings = {
        "dim": DIM,
        "depth": 2,
        "mlp_ratio": 2.0,
        "position": "learned",
        "norm": "layer",
        "prenorm": True,
        "dropout": 0.1,
        "hidden_dropout": 0.1,
        "embedding_dropout": 0.1,
        "pool": "padded_mean",
        "embedding_std": 0.02,
        "head_hidden": (128,),
        "head_act": "relu",
        **({"pair_features": "product_difference"} if task == "retrieval" else {}),
    }
    return Regime(
        name="nystrom",
        task=task,
        mixer="attention(head_dim=32, qkv_bias=True, proj_bias=True)",
        attention="attention(head_dim=32, qkv_bias=True, proj_bias=True)",
        settings={**settings, **({"length": it.length, "pad": "length"} if task in TOKENS else {}), **INPUTS[task]},
        recipe=recipe_of(
            it.steps,
            it.batch,
            1e-4,
            it.warmup,
            it.every,
            schedule="onecycle",
            warmup_start=1 / 25,
            lr_end=1 / 250_000,
            weight_decay=0.0,
            eps=1e-6,
        ),
        count=Count(it.millions),
        seeds=(),
        selection="best validation accuracy; text has no validation split there: best test accuracy",
    )
