"""Mixers that are wrong in one way each, and the correct ones that they are made from."""

from __future__ import annotations

import copy
import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from matmix.matrices import Dense, Diagonal, Product
from matmix.matrices.identity import Identity
from matmix.mixers import Context, Grid, Mixer, Projected, Traits
from matmix.ops.masks import padding_before
from tests.wrong.matrices import Filter, WrapsAround


class Fold(Mixer):
    """``y_t = sum_{s <= t} a^(t - s) V x_s``, and then a linear layer; correct, without its recurrent form."""

    traits = Traits(causal=True, mask="trim", aligned=True)

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.decay = nn.Parameter(torch.randn(dim))

    def kernel(self, length: int) -> Tensor:
        wide = torch.float64 if self.decay.dtype == torch.float64 else torch.float32
        logs = nn.functional.logsigmoid(self.decay.to(wide))
        return (logs.unsqueeze(-1) * torch.arange(length, dtype=wide, device=logs.device)).exp().unsqueeze(0)

    def values(self, x: Tensor, mask: Tensor | None) -> Tensor:
        values = self.value(x)
        if mask is not None:
            values = values.masked_fill(~mask.unsqueeze(-1), 0)
        return values.mT.unsqueeze(-1)

    def project(self, x: Tensor, context: Context) -> Projected:
        values = self.values(x, context.mask)
        return Projected(Filter(self.kernel(x.shape[1]).to(values.dtype)), values)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return self.out(mixed.squeeze(-1).mT)


class Decay(Fold):
    """The correct twin: keeps every promise that a data-independent mixer can keep."""

    traits = Traits(causal=True, mask="trim", recurrent=True, aligned=True)

    def init_state(self, batch: int) -> Tensor:
        return self.decay.new_zeros(batch, self.dim)

    def absorb(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        state = self.init_state(x.shape[0]) if state is None else state
        values, mixed = self.values(x, mask).squeeze(-1).unbind(-1), []
        for place, value in enumerate(values):
            moved = self.decay.sigmoid() * state + value
            state = moved if mask is None else torch.where(padding_before(mask).unsqueeze(1) > place, state, moved)
            mixed.append(state)
        return self.out(torch.stack(mixed, 1)), state

    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.decay.sigmoid() * state + self.value(x)
        return self.out(state), state


class ShowsAnother(Decay):
    """``matrix`` shows a matrix that did not run."""

    def matrix(self, x: Tensor, **options: Any) -> Any:  # type: ignore[override]
        return super().matrix(x, **options).scale(2.0)


class WrapsInAMixer(Decay):
    """A filter whose padding is missing."""

    def project(self, x: Tensor, context: Context) -> Projected:
        matrix, values, rest = super().project(x, context)
        return Projected(WrapsAround(matrix.kernel), values, rest)  # type: ignore[attr-defined]


class ChangesTokens(Decay):
    """Centres the tokens in place."""

    def project(self, x: Tensor, context: Context) -> Projected:
        with torch.no_grad():
            x.sub_(x.mean(1, keepdim=True))
        return super().project(x, context)


class CountsCalls(Decay):
    """A buffer that moves with every call in eval mode."""

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.register_buffer("calls", torch.zeros(()))

    def project(self, x: Tensor, context: Context) -> Projected:
        self.calls += 1
        return super().project(x, context)


class ReusesItsOutput(Decay):
    """Hands out one buffer again and again."""

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        out = super().merge(mixed, rest)
        kept = getattr(self, "_out", None)
        self._out = out if kept is None or kept.shape != out.shape or kept.dtype != out.dtype else kept.copy_(out)
        return self._out

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class CentresTheBatch(Decay):
    """Samples see each other."""

    def project(self, x: Tensor, context: Context) -> Projected:
        return super().project(x - x.mean(0, keepdim=True), context)


class UnusedParameter(Decay):
    """A parameter that nothing reads."""

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.spare = nn.Parameter(torch.randn(dim))


class CutsItsDecay(Decay):
    """A parameter that is used and never learns."""

    def kernel(self, length: int) -> Tensor:
        return super().kernel(length).detach()


class MultipliesByZero(Decay):
    """A gradient that is always zero."""

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.shift = nn.Parameter(torch.randn(dim))

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return super().merge(mixed, rest) + 0 * self.shift


class PlainTensor(Decay):
    """Random numbers that no state_dict holds."""

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        self.offset = torch.randn(dim, dtype=torch.float64)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return super().merge(mixed, rest) + self.offset.to(mixed.dtype)


class CopiesByReference(Decay):
    """A deep copy that shares its weights."""

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.copy(self)


class DividesByTheSpread(Decay):
    """The spread of one token is not a number."""

    traits = Traits(data_dependent=True)

    def project(self, x: Tensor, context: Context) -> Projected:
        return super().project(x / x.std(1, keepdim=True), context)


class LooksAtTheLargest(Decay):
    """The largest entry of an empty batch is an error."""

    def project(self, x: Tensor, context: Context) -> Projected:
        x.max()
        return super().project(x, context)


class Peeks(Decay):
    """Says causal and reads one token ahead."""

    def project(self, x: Tensor, context: Context) -> Projected:
        return super().project(x + 0.01 * x.roll(-1, 1), context)


class HidesThatItIsCausal(Decay):
    """Causal, and does not say so."""

    traits = Traits(mask="trim")


class DoesNothing(Decay):
    """Says that it mixes, and multiplies by the identity."""

    traits = Traits(causal=True)

    def project(self, x: Tensor, context: Context) -> Projected:
        values = self.values(x, None)
        return Projected(Identity.like(values), values)


class SaysItDoesNotMix(Decay):
    """Mixes, and says that it does not."""

    traits = Traits(causal=True, mixes=False)


class ReadsTheData(Decay):
    """A gate in the matrix that the traits do not tell."""

    def project(self, x: Tensor, context: Context) -> Projected:
        matrix, values, rest = super().project(x, context)
        return Projected(Filter(matrix.kernel * x.mean(1).sigmoid().unsqueeze(-1)), values, rest)  # type: ignore[attr-defined]


class SaysItReadsTheData(Decay):
    """The same matrix for all tokens, sold as data-dependent."""

    traits = Traits(causal=True, data_dependent=True)


class Table(Fold):
    """The correct twin of fixed length: a learned gain a position."""

    traits = Traits(causal=True, length="fixed")

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, grid)
        assert self.grid is not None
        self.gain = nn.Parameter(torch.randn(1, 1, math.prod(self.grid)))

    def project(self, x: Tensor, context: Context) -> Projected:
        matrix, values, rest = super().project(x, context)
        return Projected(Product.of(Diagonal(self.gain), matrix), values, rest)

    def resize_(self, grid: Grid) -> Self:
        assert self.grid is not None
        gain = nn.functional.interpolate(self.gain, math.prod(grid), mode="linear")
        super().resize_(grid)
        self.gain = nn.Parameter(gain.detach())
        return self


class HidesItsTable(Table):
    """A learned gain a position, of any length it says: only the first positions are used, or there are too few."""

    traits = Traits(causal=True)

    def project(self, x: Tensor, context: Context) -> Projected:
        matrix, values, rest = super(Table, self).project(x, context)
        gain = nn.functional.interpolate(self.gain, x.shape[1], mode="linear")
        return Projected(Product.of(Diagonal(gain), matrix), values, rest)


class ResizesTheGridOnly(Table):
    """``resize_`` that leaves the parameters as they are."""

    def resize_(self, grid: Grid) -> Self:
        self.grid = grid
        return self


class ResizesToZero(Table):
    """``resize_`` that starts anew."""

    def resize_(self, grid: Grid) -> Self:
        super().resize_(grid)
        with torch.no_grad():
            self.gain.zero_()
        return self


class ResizesACopy(Table):
    """``resize_`` that returns another mixer."""

    def resize_(self, grid: Grid) -> Self:
        return super(Table, copy.deepcopy(self)).resize_(grid)


class AssumesSquare(Decay):
    """Takes every grid for a square one."""

    def project(self, x: Tensor, context: Context) -> Projected:
        if len(context.grid) == 2:
            side = math.isqrt(x.shape[1])
            x = x.unflatten(1, (side, side)).flatten(1, 2)
        return super().project(x, context)


class TakesAnyGrid(Decay):
    """Sequences only, it says, and takes images."""

    traits = Traits(causal=True, dims=frozenset({1}))

    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__(dim, None if grid is None else (math.prod(grid),))


class LeaksPadding(Decay):
    """Takes a mask and hides its own outputs only."""

    def forward(self, x: Tensor, *, grid: Grid | None = None, mask: Tensor | None = None) -> Tensor:  # type: ignore[misc]
        out = super().forward(x, grid=grid)
        return out if mask is None else out.masked_fill(~mask.unsqueeze(-1), 0)


class TakesAMaskItCannotUse(Decay):
    """Without a mask trait, and takes one."""

    traits = Traits(causal=True)

    def _context(self, x: Tensor, grid: Grid | None, mask: Tensor | None, segments: Tensor | None = None) -> Context:
        return Context(super()._context(x, grid, None, segments).grid, mask)


class Average(Fold):
    """The correct twin that is not causal: ``y`` = the mean over the real tokens."""

    traits = Traits(mask="trim")

    def rows(self, x: Tensor, mask: Tensor | None) -> Tensor:
        real = x.new_ones(1, x.shape[1]) if mask is None else mask.to(x.dtype)
        return (real / real.sum(1, keepdim=True).clamp(min=1)).view(-1, 1, 1, x.shape[1])

    def project(self, x: Tensor, context: Context) -> Projected:
        _, values, rest = super().project(x, context)
        rows = self.rows(x, context.mask).expand(-1, -1, x.shape[1], -1)
        decay = self.decay.view(-1, 1, 1)
        return Projected(Dense(rows * decay), values, rest)


class AveragesThePadding(Average):
    """Divides by the padded length: padding does not leak in, and still shrinks the mean."""

    def rows(self, x: Tensor, mask: Tensor | None) -> Tensor:
        real = x.new_ones(1, x.shape[1]) if mask is None else mask.to(x.dtype)
        return (real / x.shape[1]).view(-1, 1, 1, x.shape[1])


class CountsPaddingOnTheLeft(Decay):
    """Right on the right: a gain by position that padding on the left shifts."""

    def values(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return super().values(x, mask) / torch.arange(1, x.shape[1] + 1).to(x).unsqueeze(-1)


class MutatesItsState(Decay):
    """Writes the new state into the old one."""

    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = state.mul_(self.decay.sigmoid()).add_(self.value(x))
        return self.out(state), state


class StepsALittleOff(Decay):
    """Decays after the new token instead of before it."""

    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.decay.sigmoid() * (state + self.value(x))
        return self.out(state), state


class ForgetsThePrompt(Decay):
    """``absorb`` whose state is that of its last token alone."""

    def absorb(self, x: Tensor, mask: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor]:
        return super().absorb(x, mask, state)[0], self.value(x[:, -1])


class DividesByLength(Decay):
    """A matrix that depends on how long the sequence is, sold as aligned."""

    def kernel(self, length: int) -> Tensor:
        return super().kernel(length) / length


class BranchesOnTokens(Decay):
    """Asks the tokens which way to go, in Python."""

    def project(self, x: Tensor, context: Context) -> Projected:
        if float(x.sum()) > 0:
            return super().project(x, context)
        return super().project(x * 1.0, context)


class BranchesOnItsState(Decay):
    """Skips what has died out, in Python."""

    def advance(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if float(state.abs().max()) < 1e-6:
            state = torch.zeros_like(state)
        return super().advance(x, state)


class Cancels(Decay):
    """A small difference of large numbers, as of two prefix sums."""

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return super().merge((mixed + 1000) - 1000, rest)


class OverflowsInHalf(Decay):
    """Numbers beyond float16's 65504 on the way."""

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return super().merge((mixed * 1e5) / 1e5, rest)


class ExponentiatesTokens(Decay):
    """An unnormalised exponential of the tokens."""

    def values(self, x: Tensor, mask: Tensor | None) -> Tensor:
        values = super().values(x, mask)
        return values * values.exp() / values.exp()


class DividesByTheNorm(Decay):
    """No epsilon: tokens of norm 0 are not a number."""

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return super().merge(mixed / mixed.norm(dim=1, keepdim=True), rest)

    def values(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return nn.functional.linear(x, self.value.weight).mT.unsqueeze(-1)


class UndoesDecay(Decay):
    """``exp`` of a positive cumulative sum: ``a^t * a^-s`` instead of ``a^(t - s)``."""

    traits = Traits(causal=True, length="any")

    def project(self, x: Tensor, context: Context) -> Projected:
        _, values, rest = super().project(x, context)
        logs = nn.functional.logsigmoid(self.decay) * 2
        place = torch.arange(x.shape[1]).to(logs.dtype)
        ahead, back = (logs[:, None] * place).exp(), (-logs[:, None] * place).exp()
        return Projected(Dense((ahead[:, :, None] * back[:, None, :]).tril().unsqueeze(0)), values, rest)


class RemembersItsFirstLength(Decay):
    """A cache that is filled once."""

    def kernel(self, length: int) -> Tensor:
        if not hasattr(self, "_kernel"):
            self._kernel = super().kernel(length).detach()
        return self._kernel


WRONG_MIXERS: list[tuple[str, type[Mixer], type[Mixer], str]] = [
    ("product", ShowsAnother, Decay, "forward: matrix(x): off by"),
    ("product", WrapsInAMixer, Decay, "forward (fast path): off by"),
    ("keeps", ChangesTokens, Decay, "the tokens after forward"),
    ("keeps", CountsCalls, Decay, "calls after forward"),
    ("keeps", ReusesItsOutput, Decay, "the outputs after another forward"),
    ("samples", CentresTheBatch, Decay, "sample 0 alone: off by"),
    ("gradients", UnusedParameter, Decay, "spare gets no gradient"),
    ("gradients", CutsItsDecay, Decay, "decay gets no gradient"),
    ("gradients", MultipliesByZero, Decay, "the gradient of shift is zero"),
    ("state_dict", PlainTensor, Decay, "a mixer with the same state_dict: differs"),
    ("state_dict", CopiesByReference, Decay, "after its deep copy changed"),
    ("small", DividesByTheSpread, Decay, "one token: an output is not finite"),
    ("small", LooksAtTheLargest, Decay, "max(): Expected reduction dim"),
    ("causal", Peeks, Decay, "an output depends on a later token"),
    ("causal", HidesThatItIsCausal, Average, "no output depends on a later token"),
    ("mixes", DoesNothing, Decay, "no token reaches another one"),
    ("mixes", SaysItDoesNotMix, Decay, "a token reaches another one"),
    ("data_dependence", ReadsTheData, Decay, "has batch 1, not 2"),
    ("data_dependence", SaysItReadsTheData, Decay, "the matrices of two inputs are the same"),
    ("length", HidesItsTable, Decay, "size mismatch for gain"),
    ("length", ResizesTheGridOnly, Table, "has 3 rows"),
    ("length", ResizesToZero, Table, "after resize_ to the same grid: off by"),
    ("length", ResizesACopy, Table, "resize_ must return the mixer"),
    ("dims", AssumesSquare, Decay, "unflatten"),
    ("dims", TakesAnyGrid, Decay, "grid (2, 5) is taken"),
    ("mask_content", LeaksPadding, Decay, "with other tokens at masked positions: off by"),
    ("mask_content", TakesAMaskItCannotUse, Table, "a mask is taken"),
    ("mask_trim", AveragesThePadding, Average, "padded on the right: off by"),
    ("mask_trim", CountsPaddingOnTheLeft, Decay, "padded on the left: off by"),
    ("recurrent", MutatesItsState, Decay, "a state after step was called with it"),
    ("recurrent", StepsALittleOff, Decay, "steps from init_state: off by"),
    ("recurrent", ForgetsThePrompt, Decay, "steps after a prefill of"),
    ("recurrent", HidesThatItIsCausal, Decay, "init_state works"),
    ("aligned", DividesByLength, Decay, "the matrix of the first 1 tokens: off by"),
    ("compiles", BranchesOnTokens, Decay, "data-dependent"),
    ("compiles_at_several_sizes", RemembersItsFirstLength, Decay, "of shape (B, 8, 13, W)"),
    ("compiles_lengths_by_inductor", RemembersItsFirstLength, Decay, "(B, 8, 13, W), got (3, 8, 26"),
    ("compiles_by_inductor", BranchesOnTokens, Decay, "data-dependent"),
    ("compiles_steps", BranchesOnItsState, Decay, "data-dependent"),
    ("exports", BranchesOnTokens, Decay, "data-dependent"),
    ("precision", Cancels, Decay, "float32 against float64: off by"),
    ("precision", OverflowsInHalf, Decay, "float16: an output is not finite"),
    ("extremes", ExponentiatesTokens, Decay, "tokens times 100: an output is not finite"),
    ("extremes", DividesByTheNorm, Decay, "zeros: an output is not finite"),
    ("long", UndoesDecay, Decay, "an output is not finite"),
]
"""(law, mixer that it must fail, its correct twin, what the law must say)."""
