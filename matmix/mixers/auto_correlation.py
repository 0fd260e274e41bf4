"""Auto-correlation: a step reads the steps at the delays at which its sequence resembles itself most."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from matmix.matrices.circulant import Circulant
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads
from matmix.mixers.registry import register
from matmix.ops import fft
from matmix.ops.linear import linear
from matmix.ops.precision import full_precision, working_dtype


def _from_library(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Four projections, each with a bias."""
    kinds = ("weight", "bias")
    names = [f"{kind}_projection" for kind in ("query", "key", "value")]
    qkv = {f"qkv.{kind}": torch.cat([state[f"{name}.{kind}"] for name in names]) for kind in kinds}
    return qkv | {f"proj.{kind}": state[f"out_projection.{kind}"] for kind in kinds}


@register(
    "auto_correlation",
    matrix="Circulant per sample",
    cost="O(L D (log L + D))",
    source="thuml/Time-Series-Library",
    paper="2106.13008, equations 5 and 6",
    smallest={"factor": 2.0},
)
class AutoCorrelation(Mixer):
    """``y[t] = W_o sum_i w_i v[(t + delay_i) mod L]``: Autoformer's mixer, one matrix for all channels.

    The correlation of queries and keys at every delay, the mean over all channels, is found by FFT. The ``factor ln L``
    delays where it is largest (at least one, at most L) are kept, and their weights are the softmax of it. The choice
    jumps from one delay to another as tokens move; between jumps the weights are smooth.

    Heads change nothing, since all channels have one correlation: there is no such option. The circle is the whole
    grid: padding is zeros to it, and a padded sequence is not the trimmed one.

    Args:
        factor: the number of delays over ln L.
        qkv_bias: biases of queries, keys and values.
        proj_bias: bias of the output projection.
        published: in training the delays are those of the mean over the batch, one choice for all, as in the published
            code; the weights are each sample's own. Outputs in evaluation are the same either way.
    """

    traits = Traits(data_dependent=True, mask="content", dims=frozenset({1}))

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        factor: float = 1.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        published: bool = False,
    ) -> None:
        super().__init__(dim, grid)
        self.factor, self.shared_delays = float(factor), published
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)

    def project(self, x: Tensor, context: Context) -> Projected:
        query, key, values = drop_padding(linear(self.qkv, x), context.mask).chunk(3, -1)
        return Projected(auto_correlation(query, key, self.factor, self.shared_delays and self.training),
                         values.unsqueeze(1))  # fmt: skip

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return linear(self.proj, merge_heads(mixed))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, factor={self.factor}, published={self.shared_delays}"

    published: ClassVar[dict[str, Any]] = {
        "thuml/Time-Series-Library": _from_library,
        "Thrillcrazyer/JustDense": _from_library,
    }


def auto_correlation(query: Tensor, key: Tensor, factor: float, shared: bool = False) -> Circulant:
    """The matrix (B, 1, L, L) that reads ahead by the delays at which queries and keys (B, L, D) agree most.

    Args:
        query, key: of one length.
        factor: how many delays are kept, over ln L.
        shared: one choice of delays for the batch, by the mean correlation.
    """
    length, exact = query.shape[1], working_dtype(query)
    with full_precision(query.device):
        spectra = [fft.rfft(t.to(exact).mT) for t in (query, key)]  # (B, D, L // 2 + 1)
        lags = fft.irfft((spectra[0] * spectra[1].conj()).mean(1), length)  # (B, L)
        chosen = lags.mean(0, keepdim=True).expand_as(lags) if shared else lags
        order = chosen.argsort(1, descending=True)
        # By rank and not by topk: how many there are is a number to no exporter with an open length.
        rank = torch.arange(length, device=query.device)
        kept = rank < (factor * torch.ones_like(rank).sum().double().log()).floor().clamp(min=1)
        weights = lags.gather(1, order).masked_fill(~kept, -torch.inf).softmax(1)
        ahead = torch.zeros_like(lags).scatter(1, order, weights)
    return Circulant.from_kernel(ahead.unsqueeze(1), (length,)).mT
