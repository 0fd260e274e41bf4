"""The channel MLP of a block, and the activations by their names."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from matmix.ops.layers import StarReLU
from matmix.ops.linear import linear


class SquaredReLU(nn.Module):
    """``relu(x)^2``, in the classification head of ConvFormer and its kin."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "star_relu": StarReLU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "hard_swish": nn.Hardswish,
}


class Mlp(nn.Module):
    """``fc2(act(fc1(x)))`` on the last axis, the same for every position.

    Args:
        dim: channels.
        hidden: width of the hidden layer.
        act: a name of ``ACTIVATIONS``.
        bias: whether both layers have one.
        drop: dropout after either layer.
    """

    def __init__(self, dim: int, hidden: int, act: str = "star_relu", bias: bool = True, drop: float = 0.0) -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.act = ACTIVATIONS[act]()
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(linear(self.fc2, self.drop(linear(self.fc1, x, self.act))))
