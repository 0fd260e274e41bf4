"""Parts of FFNet for time series, arXiv 2406.02021; its token mixer is ``ffnified(variates=...)``."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from matmix.ops.layers import CrossMlp
from matmix.ops.reparam import BranchedConv, convolved


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
        self.conv = BranchedConv(variates * width, {"conv": (kernel,), "conv1": (small,)})
        self.norm = nn.BatchNorm1d(width)
        self.mlp = CrossMlp(width, variates, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, L, variates * width)`` to the same."""
        image = x.mT.unsqueeze(2)  # a row of a channels-last image
        series = convolved(self.conv, image, axes=1).squeeze(2).unflatten(1, (self.variates, self.width))
        normed = self.norm(series.flatten(0, 1)).view_as(series)  # (B, variates, width, L)
        return x + self.mlp(normed.permute(0, 3, 2, 1)).transpose(2, 3).flatten(2)


def from_published(module: SeriesChannelMixer, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of ysj9909/FFNet, where the perceptron is two grouped convolutions."""
    shapes = {f"mlp.{name}": value.shape for name, value in module.mlp.named_parameters()}
    branches = {"dw.lkb_origin.conv": "conv.conv.c", "dw.small_conv.conv": "conv.conv1.c"}
    branches |= {"dw.lkb_origin.bn": "conv.conv.bn", "dw.small_conv.bn": "conv.conv1.bn"}
    ours = {}
    for name, value in state.items():
        part, _, leaf = name.rpartition(".")
        if part in ("ffnpw1", "ffnpw2"):
            name = f"mlp.{leaf}{part[-1]}"
            value = value.reshape(shapes[name]) if value.numel() == shapes[name].numel() else value
        ours[f"{branches[part]}.{leaf}" if part in branches else name] = value
    return ours
