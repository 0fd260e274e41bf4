"""Losses of the heads, and what is said of labels that do not fit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.matrices.legend import undense
from matmix.ranges import numbers, shown

COUNT = numbers(1, 1e15)
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
    check_labels(labels, logits.shape[:-1])
    if not isinstance(count, Tensor | None) and not COUNT.holds(count):
        raise ValueError(f"num_items_in_batch must be a number of labels, got {type(count).__name__} {shown(count)}")
    rows, answers = logits.flatten(0, -2), labels.flatten()
    total = _checked(rows, answers)
    return total / ((answers != IGNORED).sum().clamp(min=1) if count is None else count)


def check_labels(labels: Tensor, shape: torch.Size) -> None:
    """A ValueError for labels that are no tensor of this shape."""
    if not isinstance(labels, Tensor) or undense(labels) or labels.shape != shape:
        raise ValueError(f"labels must be {tuple(shape)}, got {shown(labels)}, {type(labels).__name__}")


def text_loss(logits: Tensor, labels: Tensor, problem: str | None = None) -> Tensor:
    """Loss of logits (B, C), a mean over the texts.

    Args:
        labels: (B,) integers 0 to C - 1; for "regression" (B,) or (B, C) numbers; for "multi_label_classification" (B,
            C) of 0 and 1.
        problem: transformers' `problem_type`; None: what the labels are says it (`problem_of`).
    """
    if not isinstance(labels, Tensor) or undense(labels):
        raise ValueError(f"labels must be a dense tensor, one a text, got {shown(labels)}")
    if labels.device != logits.device:
        raise ValueError(f"labels must be on {logits.device} as the logits are, got {shown(labels)} on {labels.device}")
    problem = problem or problem_of(logits.shape[-1], labels)
    if problem == "single_label_classification":
        if labels.numel() != len(logits):
            raise ValueError(f"labels must be one a text, {len(logits)}, got {shown(labels)}")
        answers = labels.flatten()
        return _checked(logits, answers) / (answers != IGNORED).sum().clamp(min=1)
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


def _checked(logits: Tensor, labels: Tensor) -> Tensor:
    try:
        return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    except (IndexError, ValueError, RuntimeError) as error:
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"labels must be whole numbers, got {shown(labels)}") from error
        if labels.device != logits.device:
            raise ValueError(f"labels must be on {logits.device}, got {shown(labels)} on {labels.device}") from error
        wrong = labels[((labels < 0) | (labels >= logits.shape[-1])) & (labels != IGNORED)]
        if not len(wrong):
            raise
        raise ValueError(
            f"labels must be 0 to {logits.shape[-1] - 1}, or {IGNORED} for what is not scored, got {wrong[0].item()}"
        ) from error
