"""What a decoder begins with: the last steps of the window, then zeros for the steps to forecast."""

from __future__ import annotations

import torch
from torch import Tensor


def known_steps(asked: int | None, length: int) -> int:
    """How many known steps a decoder begins with; None is half of the length.

    Raises:
        ValueError: for more than there are.
    """
    steps = length // 2 if asked is None else asked
    if not 0 <= steps <= length:
        raise ValueError(f"start_steps must be from 0 to length={length}, got {asked}")
    return steps


def start_of(x: Tensor, steps: int, horizon: int, start: Tensor | None) -> Tensor:
    """The decoder's input (B, steps + horizon, C); a given one is taken as it is.

    Raises:
        ValueError: for a given one that does not fit.
    """
    if start is None:
        return torch.cat((x[:, x.shape[1] - steps :], x.new_zeros(len(x), horizon, x.shape[2])), 1)
    if start.dim() != 3 or start.shape[::2] != x.shape[::2] or start.shape[1] < horizon:
        raise ValueError(f"start must be ({len(x)}, known steps + {horizon}, {x.shape[2]}), got {tuple(start.shape)}")
    return start


def marks_of(marks: Tensor | None, future_marks: Tensor | None, steps: int, horizon: int) -> Tensor | None:
    """Time features of the decoder's input, (B, steps + horizon, K), from those of the window and of what follows.

    Args:
        marks: of the window (B, L, K).
        future_marks: (B, horizon, K), or (B, steps + horizon, K): of the decoder's known steps as well.

    Raises:
        ValueError: if one of them is there and the other is not, or they do not fit.
    """
    if marks is None and future_marks is None:
        return None
    if marks is None or future_marks is None:
        given, missing = ("marks", "future_marks") if future_marks is None else ("future_marks", "marks")
        raise ValueError(f"{missing} must be given along with {given}")
    allowed = (horizon, steps + horizon)
    if future_marks.shape[::2] != marks.shape[::2] or future_marks.shape[1] not in allowed:
        raise ValueError(
            f"future_marks must be ({len(marks)}, {horizon} or {steps + horizon}, {marks.shape[2]}), "
            f"got {tuple(future_marks.shape)}"
        )
    if future_marks.shape[1] == steps + horizon:
        return future_marks
    if steps > marks.shape[1]:
        raise ValueError(f"start has {steps} known steps, more than marks has of them, {marks.shape[1]}")
    return torch.cat((marks[:, marks.shape[1] - steps :], future_marks), 1)
