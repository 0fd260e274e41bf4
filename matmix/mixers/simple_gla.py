"""Simple gated linear attention: one forget gate a token and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.mixers.base import Grid
from matmix.mixers.fast_weights import FastWeightTokens, Forgetting, from_fla
from matmix.mixers.registry import register
from matmix.ops.precision import working_dtype


@register(
    "simple_gla",
    matrix="Semiseparable per head",
    cost="O(L D E + L D^2)",
    source="fla-org/flash-linear-attention",
    paper="2312.06635, section 4, with the gate of a head",
    smallest={"heads": 2, "d_conv": 3},
)
class SimpleGLA(Forgetting):
    """``M[i, j] = exp(g_{j+1} + ... + g_i) q_i . k_j / sqrt(E)`` for ``i >= j``: Mamba-2's matrix with a learned gate.

    ``g_i = log sigmoid(W_g x_i + b) / gate_normalizer``, one a head. The recurrence is that of the published
    reference, the layer around it that of flash-linear-attention's ``SimpleGatedLinearAttention``. Masked tokens do
    not decay the state; in the published layer they do.

    Args:
        heads: number of heads H.
        expand_k: width of all queries over the model width.
        expand_v: width of all values over the model width.
        out_gate: the SiLU gate.
        d_conv: taps of a causal convolution (with SiLU) over queries, keys and values; None is without.
        gate_normalizer: divides the log of the gate, so that a fresh one forgets slowly.
        eps: added to the mean square of a head.
    """

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        out_gate: bool = True,
        d_conv: int | None = 4,
        gate_normalizer: float = 16.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(dim, grid, heads, expand_k, expand_v, out_gate, d_conv, eps, extra=heads)
        self.gate_normalizer = gate_normalizer
        self.gate_bias = nn.Parameter(torch.empty(heads).uniform_(-(dim**-0.5), dim**-0.5))

    def _log_decay(self, tokens: FastWeightTokens, mask: Tensor | None) -> Tensor:
        assert tokens.control is not None
        dtype = working_dtype(tokens.control)
        gate = F.logsigmoid(tokens.control.to(dtype) + self.gate_bias.to(dtype)) / self.gate_normalizer
        return (gate if mask is None else gate.masked_fill(~mask.unsqueeze(-1), 0)).mT

    @staticmethod
    def _from_fla(module: SimpleGLA, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return from_fla("g_proj", "gk_proj")(module, state) | {"gate_bias": state["gk_proj.bias"]}

    published: ClassVar[dict[str, Callable[..., Any]]] = {"fla-org/flash-linear-attention": _from_fla}
