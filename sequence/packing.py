"""Packing: the sequences of a batch one behind the other in a few rows, instead of a row and its padding for each."""

from __future__ import annotations

import torch

from matmix.experiments.task import Batch
from sequence.data.labels import IGNORED


def pack(batch: Batch, length: int) -> Batch:
    """A padded batch as rows of at most `length` tokens, each sequence whole in one of them.

    Args:
        batch: `x` (B, L, ...), `mask` (B, L) with the real tokens first, `y` a number each (B,), or one a token (B, L).
        length: room in a row.

    Returns:
        `x` is {"x": (R, T, ...), "segments": (R, T)}, as the encoder takes them by name; `mask` (R, T); `y` (R, S) for
        rows of up to S sequences, or (R, T), with `IGNORED` where there is none.

    Raises:
        ValueError: for a sequence that is longer than a row, or has no token.
    """
    x, y, mask = batch
    lengths = [x.shape[1]] * len(x) if mask is None else mask.sum(1).tolist()
    if min(lengths) < 1 or max(lengths) > length:
        found = f"{min(lengths)} to {max(lengths)}"
        raise ValueError(f"packed rows of {length} tokens hold sequences of 1 to {length}, got {found}")
    rows = fitted(lengths, length)
    width, most = max(sum(lengths[i] for i in row) for row in rows), max(map(len, rows))
    each = y.dim() == x.dim() and y.shape[1] == x.shape[1]
    tokens = x.new_zeros(len(rows), width, *x.shape[2:])
    segments = torch.zeros(len(rows), width, dtype=torch.int64)
    real = torch.zeros(len(rows), width, dtype=torch.bool)
    targets = y.new_full((len(rows), width if each else most), IGNORED)
    for index, row in enumerate(rows):
        at = 0
        for number, example in enumerate(row):
            end = at + lengths[example]
            tokens[index, at:end] = x[example, : lengths[example]]
            segments[index, at:] = number  # padding belongs to the last
            real[index, at:end] = True
            if each:
                targets[index, at:end] = y[example, : lengths[example]]
            else:
                targets[index, number] = y[example]
            at = end
    return Batch({"x": tokens, "segments": segments}, targets, real)


def fitted(lengths: list[int], room: int) -> list[list[int]]:
    """Which go into which row: the longest first, each into the first row with room for it (at most 11/9 of the least
    number of rows, and a row)."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r, left in enumerate(free) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(room)
        rows[row].append(index)
        free[row] -= lengths[index]
    return rows
