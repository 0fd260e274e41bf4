"""Parts of FFNet for time series, arXiv 2406.02021; its token mixer is ``ffnified(variates=...)``."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from matmix.ops.layers import CrossMlp
from sequence.layers.norms import TokenBatchNorm, normed
from sequence.series.layers.large_kernel import LargeKernel


class SeriesChannelMixer(nn.Module):
    """``x + mlp(norm(conv(x)))`` of tokens ``(B, L, variates * width)``, the variates the slow axis.

    A long depthwise convolution along time with a short branch, a batch norm over the width (common to the variates),
    and a perceptron that widens the width for every variate, then mixes the variates for every channel of the width.

    Args:
        variates: series side by side.
        width: channels of each.
        kernel, small: taps of the convolution and of its branch, odd.
        mlp_ratio: hidden units of the perceptron for every entry.
    """

    published: ClassVar[dict[str, Any]] = {"ysj9909/FFNet": lambda module, state: from_published(module, state)}

    def __init__(self, variates: int, width: int, *, kernel: int = 51, small: int = 5, mlp_ratio: int = 2) -> None:
        super().__init__()
        self.variates, self.width = variates, width
        self.conv = LargeKernel(variates * width, kernel=kernel, small=small)
        self.norm = TokenBatchNorm(width)
        self.mlp = CrossMlp(width, variates, mlp_ratio)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, L, variates * width)`` to the same; a mask is (B, L), True = a real token."""
        series = self.conv(x, mask=mask).unflatten(2, (self.variates, self.width))
        every = None if mask is None else mask.unsqueeze(-1).expand(-1, -1, self.variates)
        return x + self.mlp(normed(self.norm, series, every).mT).mT.flatten(2)


def from_published(module: SeriesChannelMixer, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of ysj9909/FFNet, where the perceptron is two grouped convolutions."""
    shapes = {f"mlp.{name}": value.shape for name, value in module.mlp.named_parameters()}
    branches = {"dw.lkb_origin.conv": "conv.conv.conv.c", "dw.small_conv.conv": "conv.conv.conv1.c"}
    branches |= {"dw.lkb_origin.bn": "conv.conv.conv.bn", "dw.small_conv.bn": "conv.conv.conv1.bn"}
    ours = {}
    for name, value in state.items():
        part, _, leaf = name.rpartition(".")
        if part in ("ffnpw1", "ffnpw2"):
            name = f"mlp.{leaf}{part[-1]}"
            value = value.reshape(shapes[name]) if value.numel() == shapes[name].numel() else value
        ours[f"{branches[part]}.{leaf}" if part in branches else name] = value
    return ours
