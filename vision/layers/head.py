"""From the last map to logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from matmix.arguments import checking_arguments
from matmix.ranges import Whole, shown
from vision.layers.mlp import SquaredReLU

POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean((1, 2)),
    "max": lambda x: x.amax((1, 2)),
    "avgmax": lambda x: 0.5 * (x.mean((1, 2)) + x.amax((1, 2))),
    "": lambda x: x,
}


class MlpHead(nn.Module):
    """Linear, squared ReLU, layer norm, dropout, linear (ConvFormer, CAFormer, DFFormer).

    The norm has ``eps=1e-5`` as in the authors' code; timm's port has 1e-6.
    """

    def __init__(self, dim: int, num_classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = SquaredReLU()
        self.norm = nn.LayerNorm(4 * dim, eps=1e-5)
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Linear(4 * dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.norm(self.act(self.fc1(x)))))


class Head(nn.Module):
    """Pooling, norm, dropout and classifier: map ``(B, h, w, dim)`` to ``(B, num_classes)``.

    Without a classifier (``num_classes=0``) the result is ``(B, dim)``, without pooling (``global_pool=""``) a
    map ``(B, C, h, w)`` of what would otherwise be a vector.

    Args:
        dim: channels.
        num_classes: 0 for no classifier.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"`` (their mean) or ``""``.
        norm: applied after pooling; None where the model normalises before it.
        drop_rate: dropout before the classifier (inside it for ``kind="mlp"``).
        kind: ``"linear"`` or ``"mlp"`` (``MlpHead``).
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        global_pool: str = "avg",
        norm: nn.Module | None = None,
        drop_rate: float = 0.0,
        kind: Literal["linear", "mlp"] = "linear",
    ) -> None:
        super().__init__()
        if kind not in ("linear", "mlp"):
            raise ValueError(f"head must be 'linear' or 'mlp', got {kind!r}")
        self.dim, self.kind, self.drop_rate = dim, kind, drop_rate
        self.norm = nn.Identity() if norm is None else norm
        self.drop = nn.Dropout(drop_rate if kind == "linear" else 0.0)
        self.reset(num_classes, global_pool)

    @checking_arguments(leave=("global_pool",))
    def reset(self, num_classes: Whole, global_pool: str | None = None) -> None:
        """A fresh classifier, and another pooling unless None."""
        if global_pool is not None:
            if not isinstance(global_pool, str) or global_pool not in POOLS:
                raise ValueError(f"global_pool must be one of {', '.join(map(repr, POOLS))}, got {shown(global_pool)}")
            self.pool_type = global_pool
        if num_classes == 0:
            self.fc: nn.Module = nn.Identity()
        elif self.kind == "mlp":
            self.fc = MlpHead(self.dim, num_classes, self.drop_rate)
        else:
            self.fc = nn.Linear(self.dim, num_classes)
        for module in self.fc.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @property
    def classifier(self) -> str:
        """The name of the last linear layer, below the head."""
        return "fc.fc2" if self.kind == "mlp" else "fc"

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.norm(POOLS[self.pool_type](x)))
        x = x if pre_logits else self.fc(x)
        return x if self.pool_type else x.permute(0, 3, 1, 2)
