"""Mixers that are wrong about their layers in one way each."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from matmix.mixers import Mixer
from matmix.ops import linear
from tests.wrong.mixers import Decay


class ReadsAWeight(Decay):
    """A layer whose weight is read, as if it were a parameter."""

    def values(self, x: Tensor, mask: Tensor | None) -> Tensor:
        values = F.linear(x, self.value.weight, self.value.bias)
        values = values if mask is None else values.masked_fill(~mask.unsqueeze(-1), 0)
        return values.mT.unsqueeze(-1)


class CallsTheFewOnly(Decay):
    """A fast path for many tokens that asks for the class and nothing else."""

    def values(self, x: Tensor, mask: Tensor | None) -> Tensor:
        many = x.numel() * self.dim >= linear.WORTH
        return ReadsAWeight.values(self, x, mask) if many else super().values(x, mask)  # type: ignore[arg-type]


class StepsByTheWeight(Decay):
    """Calls the layer on sequences, and reads it token by token."""

    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.decay.sigmoid() * state + F.linear(x, self.value.weight, self.value.bias)
        return self.out(state), state


WRONG_MIXERS: list[tuple[str, type[Mixer], type[Mixer], str]] = [
    ("layers_are_called", ReadsAWeight, Decay, "eval: value not called"),
    ("layers_are_called", CallsTheFewOnly, Decay, "eval (as for large inputs): value not called"),
    ("wrapped_layers", ReadsAWeight, Decay, "forward: off by"),
    ("wrapped_layers", CallsTheFewOnly, Decay, "forward in float32 (as for large inputs): off by"),
    ("wrapped_layers", StepsByTheWeight, Decay, "step: off by"),
    ("offloaded_layers", ReadsAWeight, Decay, "meta"),
    ("offloaded_layers", CallsTheFewOnly, Decay, "meta"),
]
"""(law, mixer that it must fail, its correct twin, what the law must say)."""
