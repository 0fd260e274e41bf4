"""Orders in which a grid of tokens is read."""

from __future__ import annotations

import torch
from torch import Tensor

ORDERS = tuple(path + way for way in ("", "_back") for path in ("rows", "columns", "snake_rows", "snake_columns"))
"""Row by row, column by column; ``snake`` turns round at the end of a line, so that every step is to a neighbour;
``_back`` is the same from the last token to the first. A sequence is one row."""

CROSS = ("rows", "columns", "rows_back", "columns_back")
"""The four scans of VMamba (2401.10166, section 4.2), in its order."""


def scan_order(name: str, grid: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """The tokens ``(L,)`` of a grid that is flattened row by row, in the order in which they are read.

    Args:
        name: one of ``ORDERS``.
        grid: ``(L,)`` or ``(rows, columns)``.

    Raises:
        ValueError: for an unknown order.
    """
    check_orders((name,))
    rows, columns = grid if len(grid) == 2 else (1, *grid)
    index = torch.arange(rows * columns, device=device).view(rows, columns)
    index = index.mT if "columns" in name else index
    if name.startswith("snake"):
        odd = (torch.arange(index.shape[0], device=device) % 2 == 1).unsqueeze(1)
        index = torch.where(odd, index.flip(1), index)
    index = index.flatten()
    return index.flip(0) if name.endswith("_back") else index


def check_orders(orders: tuple[str, ...]) -> tuple[str, ...]:
    """Orders that exist, at least one.

    Raises:
        ValueError: otherwise; the message lists those there are.
    """
    unknown = [name for name in orders if name not in ORDERS]
    if unknown or not orders or isinstance(orders, str):
        raise ValueError(f"orders must be some of {', '.join(ORDERS)}, got {orders!r}")
    return tuple(orders)
