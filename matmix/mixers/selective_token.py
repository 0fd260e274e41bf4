"""MambaMixer's selective token mixer."""

from __future__ import annotations

from matmix.mixers.base import Grid
from matmix.mixers.registry import register
from matmix.mixers.ss2d import SS2D
from matmix.ops.orders import CROSS


@register(
    "selective_token",
    matrix="sum of P^T DiagonalSemiseparable P over the scans + Diagonal, per channel",
    cost="O(K L D N + L D dim) for K scans, element by element",
    source="the paper (no official code)",
    paper="2403.19888, section 3.1 and figure 8",
    smallest={"d_state": 2, "expand": 1},
)
class SelectiveToken(SS2D):
    """MambaMixer's token mixer: ``y = W_o (sum_k S6_k(x') * silu(W_g x))`` with ``x' = silu(conv(W_x x))``.

    No code was published. This is a reading of the paper, which says VMamba's cross-scan on images (ViM2), and
    differs from ``ss2d`` in one thing: the outputs of the scans, each times the same gate, are added, and no norm
    comes in between. What the paper leaves open:

    - The gate's "MLP" is one linear map and SiLU, as in Mamba, on which the block is built.
    - B, C and the steps are read off the convolved values, as in Mamba's code, not off x, as the equations print.
    - The convolution stands before the scans, 3 x 3 on images (figure 8).
    - On sequences ``orders=("rows", "rows_back")`` is the bidirectional mixer with one convolution, and ``vim`` with
      ``divide=False`` the one of figure 1 with two; TSM2's unidirectional mixer is ``s6``.

    Args:
        expand, d_state, d_conv, dt_rank, orders, conv_bias, bias, chunk: as in ``ss2d``.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        expand: float = 2,
        d_state: int = 16,
        d_conv: int = 3,
        dt_rank: int | None = None,
        orders: tuple[str, ...] = CROSS,
        conv_bias: bool = True,
        bias: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__(
            dim,
            grid,
            expand=expand,
            d_state=d_state,
            d_conv=d_conv,
            dt_rank=dt_rank,
            out_norm=False,
            orders=orders,
            conv_bias=conv_bias,
            bias=bias,
            chunk=chunk,
        )
