"""The block around a mixer: norms, a short convolution, a perceptron and the residual stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from matmix.mixers import create_mixer
from matmix.mixers.base import drop_padding
from matmix.ops.layers import ShortConv
from matmix.ops.seed import fork_seed
from matmix.ranges import Amount, Chance, Positive, Whole
from matmix.settings import Settings
from sequence.layers.norms import Norm, make_norm, normed
from sequence.published import block_from_ponet

Act = Literal["gelu", "gelu_tanh", "relu", "silu"]
Padding = Literal["masked", "zeros"]
BlockState = tuple[Tensor | None, Any]  # the last tokens that the convolution has seen (B, D, taps); the mixer's state
ACTS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


@dataclasses.dataclass(frozen=True)
class BlockOptions(Settings):
    """What stands around the mixer of a block; the encoder says what each means."""

    mlp_ratio: Amount = 2.0
    glu: bool = False
    act: Act = "gelu"
    norm: Norm = "layer"
    prenorm: bool = True
    conv: Whole = 0
    dropout: Chance = 0.0
    hidden_dropout: Chance = 0.0
    tied_dropout: bool = False
    norm_eps: Positive | None = None
    padding: Padding = "masked"


class Block(nn.Module):
    """`x + mixer(conv(norm(x)))`, then `x + mlp(norm(x))`; post-norm: `norm(x + mixer(conv(x)))`, `norm(x + mlp(x))`.

    Args:
        mixer: its spec.
        dim, grid: as for the mixer.
        options: what stands around it.
        seed, name: every part draws its initial weights under `name` and its own.
    """

    published: ClassVar = {"lxchtan/PoNet": block_from_ponet}

    def __init__(
        self, mixer: str, dim: int, grid: tuple[int, ...], options: BlockOptions, seed: int = 0, name: str = "block"
    ) -> None:
        super().__init__()
        self.prenorm, self.padding = options.prenorm, options.padding
        self.mixer_norm = make_norm(options.norm, dim, options.norm_eps)
        with fork_seed(seed, f"{name}.mixer"):
            self.mixer = create_mixer(mixer, dim, grid)
        self.conv = None
        if options.conv:
            with fork_seed(seed, f"{name}.conv"):
                self.conv = FrontConv(dim, options.conv, causal=self.mixer.traits.causal)
        self.dropout = TiedDropout(options.dropout) if options.tied_dropout else nn.Dropout(options.dropout)
        self.mlp = None
        if options.mlp_ratio:
            self.mlp_norm, hidden = make_norm(options.norm, dim, options.norm_eps), round(options.mlp_ratio * dim)
            with fork_seed(seed, f"{name}.mlp"):
                self.mlp = make_mlp(dim, hidden, options)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
        given: tuple[Tensor, Tensor | None] | None = None,
    ) -> Tensor:
        """Tokens (B, L, D) to tokens (B, L, D); `given` are the segments and delimiters of mixers that take them."""

        def mix(x: Tensor) -> Tensor:
            seen = mask
            if self.padding == "zeros":
                x, seen = drop_padding(x, mask), None
            if self.conv is not None:
                x = self.conv(drop_padding(x, seen), segments=segments)
            if given is not None and hasattr(type(self.mixer), "mix_segments"):
                return self.mixer.mix_segments(x, given[0], special=given[1], mask=seen)  # type: ignore[operator]
            return self.mixer(x, mask=seen) if segments is None else self.mixer(x, mask=seen, segments=segments)

        return self._around(x, mix, mask)

    def _around(self, x: Tensor, mix: Callable[[Tensor], Tensor], mask: Tensor | None = None) -> Tensor:
        """Both residual branches; the first is the mixer's, however it runs."""
        x = self._add(x, self.mixer_norm, mix, mask)
        return x if self.mlp is None else self._add(x, self.mlp_norm, self.mlp, mask)

    def _add(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor], mask: Tensor | None) -> Tensor:
        if self.prenorm:
            return x + self.dropout(branch(normed(norm, x, mask)))
        return normed(norm, x + self.dropout(branch(x)), mask)

    # ------------------------------------------------------------------ token by token

    def init_state(self, batch: int) -> BlockState:
        """Before the first token: zeros for the convolution, what the mixer says."""
        window = None if self.conv is None else self.conv.weight.new_zeros(batch, self.mixer.dim, self.conv.size)
        return window, self.mixer.init_state(batch)

    def absorb(self, x: Tensor, mask: Tensor | None, state: BlockState) -> tuple[Tensor, BlockState]:
        """Tokens (B, L, D) that follow on a state, padding before the first real one, and the state after them."""
        window, memory = state

        def mix(x: Tensor) -> Tensor:
            nonlocal window, memory
            if self.conv is not None:
                x, window = self.conv.absorb(drop_padding(x, mask), mask, window)
            x, memory = self.mixer.prefill(x, mask=mask, state=memory)
            return x

        return self._around(x, mix, mask), (window, memory)

    def step(self, x: Tensor, state: BlockState) -> tuple[Tensor, BlockState]:
        """One more token (B, D)."""
        window, memory = state

        def mix(x: Tensor) -> Tensor:
            nonlocal window, memory
            if self.conv is not None:
                assert window is not None
                x, window = self.conv.step(x, window)
            x, memory = self.mixer.step(x, memory)
            return x

        return self._around(x, mix), (window, memory)


def make_mlp(dim: int, hidden: int, options: BlockOptions) -> nn.Sequential:
    """Two linear layers with an activation, or a gated unit, between them."""
    act = ACTS[options.act]()
    first = [nn.Linear(dim, 2 * hidden), Gate(act)] if options.glu else [nn.Linear(dim, hidden), act]
    rest = nn.Dropout(options.hidden_dropout) if options.hidden_dropout else None
    return nn.Sequential(*first, *([rest] if rest else []), nn.Linear(hidden, dim))


class Gate(nn.Module):
    """`u * act(v)` of the two halves of the channels, a gated linear unit (arXiv 2002.05202)."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return value * self.act(gate)


class FrontConv(ShortConv):
    """A short depthwise convolution in front of a mixer: causal, or centred with the odd tap of an even size before
    the token, so that four taps, Mamba's size, stand in front of any mixer."""

    def __init__(self, dim: int, size: int, *, causal: bool) -> None:
        super().__init__(dim, size)  # drawn alike either way
        self.causal = causal


class TiedDropout(nn.Module):
    """Dropout that leaves out whole channels of a sequence: one draw for all of its tokens, as in S4's code."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = nn.Dropout(p).p  # which checks it

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, L, D)."""
        return x if self.p == 0 else F.dropout1d(x.mT, self.p, self.training).mT

    def extra_repr(self) -> str:
        return f"p={self.p}"
