"""Scan: a sequence mixer along several orders of the tokens."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from matmix.matrices.algebra import HeadCat, Product
from matmix.matrices.base import Matrix
from matmix.matrices.permutation import Permutation
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.registry import create_mixer, register
from matmix.ops.orders import CROSS, check_orders, scan_order


@register(
    "scan",
    matrix="HeadCat of P^T M P over the orders",
    cost="that of its mixer, for every order",
    source="the cross-scan of VMamba, around any mixer",
    paper="2401.10166, section 4.2",
    smallest={"spec": "ssd(head_dim=4, d_state=2, d_conv=3)", "orders": ("rows", "columns_back")},
)
class Scan(Mixer):
    """``y = mean_k P_k^T f(P_k x)``: the mixer f reads the tokens in several orders, and the outputs are averaged.

    So a mixer of sequences becomes one of images, ``scan(spec="hydra", orders=("rows", "columns"))``, or sees both ends
    of a sequence; S-Mamba's (arXiv 2403.11144) is ``s6`` by ``("rows", "rows_back")`` with ``shared=False`` and
    ``divide=False``. The matrix has the heads of all orders, ``P_k^T M_k P_k`` on its own values each.

    Args:
        spec: a mixer that takes sequences.
        orders: of ``matmix.ops.orders.ORDERS``.
        shared: one set of weights for all orders, or one each.
        divide: the mean of the orders, else their sum.
    """

    traits = Traits(data_dependent=True, mask="trim")

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        spec: str = "ssd",
        orders: tuple[str, ...] = CROSS,
        shared: bool = True,
        divide: bool = True,
    ) -> None:
        self.orders = check_orders(orders)
        line = None if grid is None else _line(grid)
        parts = [create_mixer(spec, dim, line) for _ in range(1 if shared else len(self.orders))]
        inner = parts[0].traits
        if 1 not in inner.dims:
            raise ValueError(f"spec must be a mixer that takes sequences, got {spec!r} of grids with {inner.dims} axes")
        # What an order does to causality hangs on the grid: nothing is promised.
        self.traits = Traits(
            data_dependent=inner.data_dependent, length=inner.length, mask=inner.mask, mixes=inner.mixes
        )
        super().__init__(dim, grid)
        self.parts, self.divide = nn.ModuleList(parts), divide

    def _part(self, index: int) -> Mixer:
        return self.parts[index if len(self.parts) > 1 else 0]  # type: ignore[return-value]

    def project(self, x: Tensor, context: Context) -> Projected:
        length = x.shape[1]
        matrices: list[Matrix] = []
        streams, rests, repeats = [], [], []
        for index, name in enumerate(self.orders):
            order = scan_order(name, context.grid, x.device)
            mask = None if context.mask is None else context.mask.index_select(1, order)
            inner = Context((length,), mask)
            matrix, values, rest = self._part(index).project(x.index_select(1, order), inner)
            if matrix.shape[2] != length:
                raise ValueError(f"scan needs a mixer whose matrix has a row a token, got {matrix!r}")
            # Every stream of values in the order of the tokens, so that the columns of the matrix are tokens too.
            columns = _columns(order, values.shape[2])
            matrices.append(Product.of(Permutation(order, x.dtype).mT, matrix, Permutation(columns, x.dtype)))
            streams.append(values.index_select(2, columns.argsort()))
            repeats.append(values.shape[1] // matrix.shape[1])
            rests.append((rest, order))
        return Projected(HeadCat(tuple(matrices), tuple(repeats)), torch.cat(streams, 1), rests)

    def mix(self, x: Tensor, context: Context) -> Tensor:
        outputs = []
        for index, name in enumerate(self.orders):
            order = scan_order(name, context.grid, x.device)
            mask = None if context.mask is None else context.mask.index_select(1, order)
            tokens = self._part(index)(x.index_select(1, order), grid=(x.shape[1],), mask=mask)
            outputs.append(tokens.index_select(1, order.argsort()))
        return self._together(outputs)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        outputs = []
        for index, (part, (inner, order)) in enumerate(zip(mixed.chunk(len(self.orders), 1), rest, strict=True)):
            tokens = self._part(index).merge(part.index_select(2, order), inner)
            outputs.append(tokens.index_select(1, order.argsort()))
        return self._together(outputs)

    def _together(self, outputs: list[Tensor]) -> Tensor:
        stack = torch.stack(outputs)
        return stack.mean(0) if self.divide else stack.sum(0)

    def resize_(self, grid: Grid) -> Self:
        super().resize_(grid)
        for part in self.parts:
            part.resize_(_line(grid))  # type: ignore[operator]
        return self


def _line(grid: Grid) -> Grid:
    """The grid of the tokens in a row."""
    return (grid,) if isinstance(grid, int) else (math.prod(grid),)


def _columns(order: Tensor, count: int) -> Tensor:
    """The order of several streams of tokens one after another; columns that are no tokens (states) stay behind."""
    length = order.shape[0]
    streams = [order + start for start in range(0, count - length + 1, length)]
    return torch.cat((*streams, torch.arange(len(streams) * length, count, device=order.device)))
