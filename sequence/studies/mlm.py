"""Masked language models: `matmix study mlm --data wikitext-2 --mixers attention hydra fnet ponet --tokens 2e6`."""

from __future__ import annotations

from typing import Annotated, Any

import tyro

from matmix.experiments.study import Study, StudyArm, StudyTask
from sequence.language.recipes import PRETRAINING

MIXERS = ("attention", "hydra", "matrix_mixer(structure='toeplitz')", "fnet", "ponet")
SPECS = {"attention": "attention(head_dim=32, rotary=True)", "hydra": "hydra(head_dim=32, d_state=16)"}
"""Of small models. Attention has rotary positions, as in the other studies: with learned ones alone it stays at the
frequencies of words for the first 600,000 tokens (6.25 nats of 6.29, where rotary ones have 5.65 after 460,000)."""


def mlm(
    data: Annotated[str, tyro.conf.arg(help="A text file, a pattern, a folder, or a data set of the hub.")] = "",
    tokens: Annotated[float, tyro.conf.arg(help="Of every arm's training, padding included; 0 with a protocol.")] = 2e6,
    protocol: Annotated[
        str, tyro.conf.arg(help=f"A published one, {' or '.join(PRETRAINING)}: its sizes, data and steps.")
    ] = "",
    tokenizer: Annotated[str, tyro.conf.arg(help="As the task's `tokens`.")] = "wordpiece",
    vocabulary: Annotated[int, tyro.conf.arg(help="The most words of 'wordpiece'.")] = 4000,
    dim: Annotated[int, tyro.conf.arg(help="Model width.")] = 64,
    depth: Annotated[int, tyro.conf.arg(help="Blocks.")] = 2,
    length: Annotated[int, tyro.conf.arg(help="Tokens of a row.")] = 128,
    batch_size: Annotated[int, tyro.conf.arg(help="Rows of a step.")] = 8,
    lr: Annotated[float, tyro.conf.arg(help="The highest rate.")] = 4e-3,
) -> Study:
    """Every mixer pretrained on as many tokens, one run for each seed, which `matmix study glue --from` goes on with.

    Controls: "identity" mixes nothing, so it knows how frequent words are and where they stand; the cross entropy of
    word frequencies alone stands under the table. With a protocol everything is as published, at its budget, and the
    published scores stand beside; with any other budget they do not.
    """
    options: dict[str, Any] = {"data": data} if data else {}
    recipe: dict[str, Any] = {}
    if protocol:
        if protocol not in PRETRAINING:
            raise ValueError(f"protocol must be one of {', '.join(PRETRAINING)}, got {protocol!r}")
        options = {"protocol": protocol, **PRETRAINING[protocol]()[0], **options}
    else:
        options |= {
            "tokens": tokenizer, "vocabulary": vocabulary, "dim": dim, "depth": depth, "length": length,
        }  # fmt: skip
        steps = round(tokens / (batch_size * length))
        if steps < 1:
            raise ValueError(f"tokens must be at least those of a step, {batch_size * length}, got {tokens:g}")
        recipe = {"steps": steps, "batch_size": batch_size, "lr": lr, "eval_every": max(1, steps // 8)}
    budget = f"protocol {protocol}" if protocol else f"{tokens:,.0f} tokens each, in rows of {length}"
    return Study(
        name="-".join(filter(None, ("mlm", protocol))),
        tasks=(StudyTask("mlm", options, recipe, specs={} if protocol else SPECS, arms=(StudyArm("identity"),)),),
        mixers=MIXERS,
        seeds=(0,),
        note=f"How well does each mixer fill in hidden words after {budget}?",
    )
