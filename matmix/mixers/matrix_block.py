"""Hydra's framework: one gated block, and the structures of the matrix that may stand in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import Sum
from matmix.matrices.base import Matrix
from matmix.matrices.identity import Identity
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads, split_heads
from matmix.ops import interpolate
from matmix.ops.layers import GatedRMSNorm, ShortConv
from matmix.ops.linear import linear
from matmix.ops.state_space import head_width, inner_width


class Signals(NamedTuple):
    """What a structure may make its matrix of."""

    values: Tensor  # (B, H, L, W), zero at padding
    streams: Tensor  # (B, L, sum(streams)): its own part of the convolved projection, zero at padding
    raw: Tensor  # (B, L, raw): its part that goes by the convolution
    size: Tensor | float  # the length that scales M, (B, 1, 1, 1) or a number
    context: Context


class Form(NamedTuple):
    """Which of its forms a structure takes."""

    data_dependent: bool = True  # M from the tokens, else learned
    causal: bool = False  # no entry above the diagonal (Toeplitz only)
    published: bool = False  # as the published code has it, where that differs
    max_len: int | None = None  # the length that scales M; None: that of the tokens


class Structure(nn.Module):
    """How M of the block is made: from the tokens, or of learned parameters for the length it was built for.

    Args:
        heads: number of heads H.
        width: of a head.
        qk_dim: numbers a token and head in q and in k, where it has them.
        grid: the grid of learned parameters.
        form: which of its forms.
    """

    name: ClassVar[str]
    ways: ClassVar[tuple[bool, ...]] = (True, False)  # the values of data_dependent that it has, its default first
    needs_qk: ClassVar[bool] = True  # whether qk_dim says anything
    activated: ClassVar[bool] = False  # its streams go through SiLU
    residual: ClassVar[bool] = True  # the block adds the values
    scaled: ClassVar[bool] = True  # whether the length scales M

    streams: tuple[int, ...] = ()  # widths of what it takes of the convolved projection
    raw: int = 0  # width of what it takes past the convolution

    def __init__(self, heads: int, width: int, qk_dim: int, grid: Grid | None, form: Form) -> None:
        super().__init__()
        self.heads, self.qk_dim, self.form = heads, qk_dim, form

    @classmethod
    def promise(cls, form: Form) -> Traits:
        """The traits of a block with it."""
        if form.data_dependent:
            return Traits(data_dependent=True, mask="trim")
        return Traits(length="fixed", mask="content")

    def forward(self, signals: Signals) -> Matrix:
        """M, ``(B or 1, H, L, L)``."""
        raise NotImplementedError

    def resize_(self, old: Grid, new: Grid) -> None:
        """Carry learned parameters over to another grid."""

    def _draw(self, *shape: int) -> nn.Parameter:
        """Learned numbers as large as those that come from tokens.

        Published: Xavier's rule over three axes, with which M starts near 0.
        """
        empty = torch.empty(shape)
        (nn.init.xavier_normal_ if self.form.published else nn.init.normal_)(empty)
        return nn.Parameter(empty)

    # The published class's state dict to ours.
    published: ClassVar[dict[str, Callable[..., Any]]] = {"goombalab/hydra": lambda module, state: state}


class Factors(Structure):
    """M of two vectors a token and head, q and k, linear in the convolved tokens (or SiLU of that), or learned."""

    def __init__(self, heads: int, width: int, qk_dim: int, grid: Grid | None, form: Form) -> None:
        super().__init__(heads, width, qk_dim, grid, form)
        if form.data_dependent:
            self.streams = (heads * qk_dim, heads * qk_dim)
            return
        assert grid is not None
        self.q_matrix, self.k_matrix = (self._draw(math.prod(grid), heads, qk_dim) for _ in range(2))

    def mixing(self, query: Tensor, key: Tensor, size: Tensor | float, mask: Tensor | None = None) -> Matrix:
        """M of q and k, ``(B or 1, H, L, qk)``."""
        raise NotImplementedError

    def forward(self, signals: Signals) -> Matrix:
        if self.form.data_dependent:
            both = signals.streams.split(self.streams, -1)
            query, key = (split_heads(part.contiguous(), self.heads) for part in both)
        else:
            query, key = (part.transpose(0, 1).unsqueeze(0) for part in (self.q_matrix, self.k_matrix))
        return self.mixing(query, key, signals.size, signals.context.mask)

    def resize_(self, old: Grid, new: Grid) -> None:
        """Interpolate q and k along the tokens."""
        if self.form.data_dependent:
            return
        ratio = math.prod(new) / math.prod(old)
        for name in ("q_matrix", "k_matrix"):
            weight = getattr(self, name)
            moved = self._rescaled(interpolate.positions(weight.detach(), 0, old, new), ratio)
            setattr(self, name, nn.Parameter(moved, weight.requires_grad))

    def _rescaled(self, weight: Tensor, ratio: float) -> Tensor:
        """q or k for a length that is ``ratio`` times what it was."""
        return weight


class MatrixBlock(Mixer):
    """``y = W_o (norm(M v + v) silu(z))`` with ``z | v | ... = W x`` (Hydra, arXiv 2407.09941, section 2).

    v and whatever M is made of go through a short centred convolution, v (in some structures the rest too) through
    SiLU. The end is not linear in the product: an RMS norm and a gate come before the output projection. Images are
    read row by row. Learned matrices have the length they were built for; ``resize_`` interpolates them. A mask makes
    padding zero everywhere; a padded sequence equals the unpadded one where M comes from the tokens (Vandermonde counts
    its positions from the start of the padding, and is an exception), not where M is learned or the Fourier transform.

    Args:
        data_dependent: M from the tokens, else learned; None is the first of the two that the structure has.
        published: reproduce the published code where it is wrong or starts badly (see the structure), for its
            checkpoints.
        expand: inner width over model width.
        head_dim: width of a head; None is the largest divisor of ``expand * dim`` up to 64.
        qk_dim: numbers a token and head in q, and in k; None is 16 in the structures that have them.
        d_conv: taps of the convolution, odd unless causal.
        bias: biases of the input and output projections.
        conv_bias: bias of the convolution.
        max_len: the length that scales M where it comes from the tokens; None is the number of real ones. Published
            models keep the length that they were built for, whatever the length of the sequence.
    """

    structure: type[Structure]  # a subclass says it, or an instance before it is built
    causal: bool = False

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        data_dependent: bool | None = None,
        published: bool = False,
        expand: float = 2,
        head_dim: int | None = None,
        qk_dim: int | None = None,
        d_conv: int = 7,
        bias: bool = False,
        conv_bias: bool = True,
        max_len: int | None = None,
    ) -> None:
        structure, name = self.structure, self.structure.name
        dependent = structure.ways[0] if data_dependent is None else data_dependent
        if dependent not in structure.ways:
            raise ValueError(f"data_dependent must be {structure.ways[0]} for {name}, got {data_dependent!r}")
        form = Form(dependent, self.causal, published, max_len)
        self.traits = structure.promise(form)
        super().__init__(dim, grid)
        if qk_dim is not None and not structure.needs_qk:
            raise ValueError(f"qk_dim must be None for {name}, whose matrix is not made of q and k, got {qk_dim}")
        if max_len is not None and not (dependent and structure.scaled):
            raise ValueError(
                f"max_len must be None but for data-dependent matrices that the length scales, got {max_len} for {name}"
            )
        if d_conv % 2 == 0 and not self.causal:
            raise ValueError(f"d_conv must be odd, as the convolution is centred, got {d_conv!r}")
        inner = inner_width(dim, expand)
        width = head_width(inner, head_dim, 1, "expand * dim")
        self.heads, self.max_len = inner // width, max_len
        self.matrix_mixer = structure(self.heads, width, 16 if qk_dim is None else qk_dim, self.grid, form)
        own = sum(self.matrix_mixer.streams)
        self.sizes = (inner, inner + own, self.matrix_mixer.raw)
        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=bias)
        self.conv1d = ShortConv(inner + own, d_conv, causal=self.causal, bias=conv_bias)
        self.norm = GatedRMSNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=bias)

    def project(self, x: Tensor, context: Context) -> Projected:
        mask, structure = context.mask, self.matrix_mixer
        gate, signal, raw = linear(self.in_proj, x).split(self.sizes, -1)
        # Zeros at padding on both sides of the convolution, whose bias (and that of in_proj) would fill it.
        signal = drop_padding(self.conv1d(drop_padding(signal, mask)), mask)
        value, streams = signal.split((self.sizes[0], self.sizes[1] - self.sizes[0]), -1)
        # Part by part: what comes out of a view is contiguous, so that the heads need no copy.
        values = split_heads(F.silu(value).contiguous(), self.heads)
        if structure.activated:
            streams = F.silu(streams)
        size: Tensor | float = self.max_len or x.shape[1]
        if mask is not None and self.max_len is None and structure.form.data_dependent:
            size = mask.sum(1).clamp(min=1).to(values.dtype)[:, None, None, None]
        matrix = structure(Signals(values, streams, raw, size, context))
        return Projected(Sum((matrix, Identity.like(values))) if structure.residual else matrix, values, gate)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return linear(self.out_proj, self.norm(merge_heads(mixed), rest))

    def resize_(self, grid: Grid) -> Self:
        """Note the grid; learned matrices are carried over to it (see the structure)."""
        old = self.grid
        super().resize_(grid)
        if old is not None and self.grid is not None:
            self.matrix_mixer.resize_(old, self.grid)
        return self

    def extra_repr(self) -> str:
        kind = "from the tokens" if self.matrix_mixer.form.data_dependent else "learned"
        return f"{super().extra_repr()}, heads={self.heads}, {kind}"

    @staticmethod
    def _from_published(module: MatrixBlock, state: dict[str, Tensor]) -> dict[str, Tensor]:
        prefix, rest = "matrix_mixer.", dict(state.items())
        inner = {name.removeprefix(prefix): rest.pop(name) for name in list(rest) if name.startswith(prefix)}
        convert = type(module.matrix_mixer).published["goombalab/hydra"]
        return rest | {prefix + name: value for name, value in convert(module.matrix_mixer, inner).items()}

    published: ClassVar[dict[str, Any]] = {"goombalab/hydra": _from_published}
