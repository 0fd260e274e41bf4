"""Arms that say what a score on a long sequence is worth: a model without order, models that see near tokens only."""

from __future__ import annotations

from matmix.experiments.study import StudyArm

WINDOWS = (16, 64, 256)
"""Tokens that a token hears over the whole depth."""


def bag(*, pooled: bool = True) -> StudyArm:
    """No mixing and no positions: what the tokens say, whatever their order.

    Args:
        pooled: whether the task reads one vector a sequence, which is their mean then.
    """
    return StudyArm("bag", "identity", {"position": "none", "conv": 0, **({"pool": "mean"} if pooled else {})})


def window(tokens: int, depth: int) -> StudyArm:
    """Separable convolutions of which `depth` in a row reach about so many tokens.

    Each of k taps adds k - 1 tokens to what is heard. k is odd, so the reach is the next one that is possible.
    """
    if tokens < 2:
        raise ValueError(f"tokens must be at least 2, got {tokens}")
    half = max(1, round((tokens - 1) / (2 * depth)))
    return StudyArm(f"window-{tokens}", f"sep_conv(kernel={2 * half + 1})", window=1 + depth * 2 * half)


def controls(depth: int, length: int) -> tuple[StudyArm, ...]:
    """All of them: `identity`, `bag`, and the windows that are shorter than the sequence."""
    return (StudyArm("identity"), bag(), *(window(tokens, depth) for tokens in WINDOWS if tokens < length))
