"""Tokens as images."""

from __future__ import annotations

from torch import Tensor


def image_of(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Tokens ``(B, L, D)`` as an image ``(B, D, rows, columns)``, a channels-last view; a sequence is one row.

    Going by way of ``tokens.mT`` would give a batch of one a stride by which kernels take it for channels-first
    memory, and copy it (ten times slower).
    """
    rows, columns = grid if len(grid) == 2 else (1, *grid)
    return tokens.view(tokens.shape[0], rows, columns, tokens.shape[2]).permute(0, 3, 1, 2)
