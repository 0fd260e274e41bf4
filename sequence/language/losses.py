"""Losses of the heads, and what is said of labels that do not fit."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""Label of what is not scored, as everywhere in transformers."""


def token_loss(logits: Tensor, labels: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Cross entropy of logits (B, L, V) for labels (B, L), a mean over those that are not -100.

    Args:
        count: what the sum is divided by instead: the labels of all parts of a batch that is accumulated, as
            transformers' `Trainer` gives them.

    Raises:
        ValueError: for labels of another shape or out of range.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels must be {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}")
    rows, answers = logits.flatten(0, -2), labels.flatten()
    total = _checked(rows, answers, "sum")
    return total / ((answers != IGNORED).sum().clamp(min=1) if count is None else count)


def text_loss(logits: Tensor, labels: Tensor, problem: str) -> Tensor:
    """Loss of logits (B, C), a mean over the texts.

    Args:
        labels: (B,) integers 0 to C - 1; for "regression" (B,) or (B, C) numbers; for "multi_label_classification" (B,
            C) of 0 and 1.
        problem: transformers' `problem_type`.
    """
    if problem == "single_label_classification":
        return _checked(logits, labels.flatten(), "mean")
    if labels.numel() != logits.numel():
        raise ValueError(f"labels of a {problem} must be {tuple(logits.shape)}, got {tuple(labels.shape)}")
    labels = labels.view_as(logits).to(logits.dtype)
    if problem == "regression":
        return F.mse_loss(logits, labels)
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels)
    raise ValueError(
        f"problem_type must be regression, single_label_classification or multi_label_classification, got {problem!r}"
    )


def problem_of(count: int, labels: Tensor) -> str:
    """What labels are of, where the configuration does not say: one number is a regression, whole numbers are classes,
    others are several labels at once."""
    if count == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def _checked(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    try:
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction=reduction)
    except (IndexError, ValueError, RuntimeError) as error:
        wrong = labels[((labels < 0) | (labels >= logits.shape[-1])) & (labels != IGNORED)]
        if not len(wrong):
            raise
        raise ValueError(
            f"labels must be 0 to {logits.shape[-1] - 1}, or {IGNORED} for what is not scored, got {wrong[0].item()}"
        ) from error
