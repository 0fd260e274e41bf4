"""Options of models that had another name once, and the error that says what to write instead."""

from __future__ import annotations

from collections.abc import Sequence

from matmix import spec

RENAMED = {
    "dim": "dims",
    "head_dim": "head_hidden_size",
    "kernels": "kernel",
    "mlp_act": "act",
    "mlp_bias": "bias",
    "mlp_ratios": "mlp_ratio",
    "patches": "patch",
    "weight_resize": "dynamic_img_size",
}
# What describes a mixer is written where the mixer is named.
OF_MIXERS = {
    "attention_heads": "inception(heads=3)",
    "heads": "inception(heads=3)",
    "pools": "inception(pool=2)",
    "rafts": "raft(raft=2)",
    "shares": "active(share=4)",
    "token_expansion": "raft(expand=2.0)",
}


def unknown_option(model: str, option: str, known: Sequence[str]) -> str:
    """The error for an option that a model does not have."""
    new = RENAMED.get(option)
    if new in known:
        return f"{model} has no option {option!r}: {option} is called {new} here"
    if option in OF_MIXERS:
        return f"{model} has no option {option!r}: it is the mixer's, as in mixers={OF_MIXERS[option]!r}"
    return spec.unknown_option(model, option, known)
