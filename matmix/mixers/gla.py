"""Gated linear attention: a forget gate for every token, head and key channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.gated_semiseparable import GatedSemiseparable
from matmix.mixers.base import Grid, split_heads
from matmix.mixers.fast_weights import FastWeightTokens, Forgetting, from_fla
from matmix.mixers.registry import register
from matmix.ops.channel_scan import channel_scan
from matmix.ops.effective import tensor_of
from matmix.ops.precision import working_dtype


@register(
    "gla",
    matrix="GatedSemiseparable per head",
    cost="O(L D E + L D^2)",
    source="fla-org/flash-linear-attention",
    paper="2312.06635, equations 3 and 4",
    smallest={"heads": 2, "expand_k": 1.0, "gate_rank": 2},
)
class GLA(Forgetting):
    """``M[i, j] = sum_n q_i[n] exp(g_{j+1}[n] + ... + g_i[n]) k_j[n] / sqrt(E)`` for ``i >= j``.

    ``g_i = log sigmoid(W_2 W_1 x_i + b) / gate_normalizer``, one a key channel. The recurrence is that of the
    published reference, the layer around it that of flash-linear-attention's ``GatedLinearAttention``: no biases but
    the gate's, an RMS norm of every head, a SiLU gate. Masked tokens do not decay the state.

    Args:
        heads: number of heads H.
        expand_k: width of all queries over the model width.
        expand_v: width of all values over the model width.
        out_gate: the SiLU gate.
        d_conv: taps of a causal convolution (with SiLU) over queries, keys and values; None is without.
        gate_rank: rows of W_1.
        gate_normalizer: divides the log of the gate, so that a fresh one forgets slowly.
        eps: added to the mean square of a head.
    """

    kind: ClassVar = GatedSemiseparable

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        heads: int = 4,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        out_gate: bool = True,
        d_conv: int | None = None,
        gate_rank: int = 16,
        gate_normalizer: float = 16.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(dim, grid, heads, expand_k, expand_v, out_gate, d_conv, eps, extra=gate_rank)
        self.gate_normalizer = gate_normalizer
        self.gate_proj = nn.Linear(gate_rank, self.heads * self.key_dim)

    def _log_decay(self, tokens: FastWeightTokens, mask: Tensor | None) -> Tensor:
        assert tokens.control is not None
        # Where autocast is off, as in a step, what it made before is in its dtype still.
        gate = self.gate_proj(tokens.control.to(tensor_of(self.gate_proj).dtype))
        gate = F.logsigmoid(gate.to(working_dtype(gate))) / self.gate_normalizer
        return split_heads(gate if mask is None else gate.masked_fill(~mask.unsqueeze(-1), 0), self.heads)

    def _scan(
        self, values: Tensor, query: Tensor, key: Tensor, log_decay: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return channel_scan(values, query, key, log_decay, initial=initial)

    @staticmethod
    def _from_fla(module: GLA, state: dict[str, Tensor]) -> dict[str, Tensor]:
        gate = {f"gate_proj.{name}": state[f"gk_proj.1.{name}"] for name in ("weight", "bias")}
        return from_fla("g_proj", "gk_proj.0")(module, state) | gate

    published: ClassVar[dict[str, Callable[..., Any]]] = {"fla-org/flash-linear-attention": _from_fla}
