"""The contract of a mixer: tokens in, tokens out, and the matrix in between on show.

A mixer writes two methods. ``project`` turns tokens into a matrix, the values it multiplies and whatever else the
end needs; ``merge`` turns the product back into tokens. ``forward`` is written once, here. A mixer whose product has a
shorter way than its matrix writes ``product`` beside ``project``, as a kernel stands beside its reference; a law holds
values and gradients of the two together, so the matrix that ``matrix()`` returns is the matrix that ran.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from matmix.matrices.base import Matrix
from matmix.mixers.calls import check_batch, check_grid, described, explain, is_like, likeness
from matmix.mixers.options import checking_options
from matmix.ops.marks import undecayed
from matmix.ops.masks import in_order, padding_first, runs
from matmix.ops.private import in_jit_trace
from matmix.ops.reparam import keeping_statistics
from matmix.ops.sizes import LengthError, known
from matmix.ranges import shown

Grid = tuple[int, ...]
State = Any  # a pytree of tensors, (B, ...) each
_MixerT = TypeVar("_MixerT")


@dataclass(frozen=True)
class Traits:
    """What a mixer promises; each promise is a law of the test suite (matmix.testing)."""

    causal: bool = False  # no output depends on a later token
    data_dependent: bool = False  # the matrix depends on the tokens
    length: Literal["any", "fixed"] = "any"  # fixed: tied to the grid it was built for, until resize_
    # content: what stands at masked positions never reaches a real token; trim: a padded sequence also equals the
    # unpadded one; None: a mask is refused
    mask: Literal[None, "content", "trim"] = None
    recurrent: bool = False  # init_state, prefill and step give the same outputs token by token
    aligned: bool = False  # the matrix of a prefix is the leading block of the matrix
    mixes: bool = True  # tokens reach other tokens (identity aside)
    # by published definition the gradient holds constant what the mixer detaches (a quantiser's choice)
    straight_through: bool = False
    dims: frozenset[int] = field(default=frozenset({1, 2}))  # grids it accepts: sequences, images
    packed: bool = False  # several sequences in a row, told apart by segments, are mixed as each would be by itself


class Context(NamedTuple):
    """What ``project`` knows besides the tokens."""

    grid: Grid  # static, prod(grid) = L
    mask: Tensor | None  # (B, L) bool, True = a real token
    segments: Tensor | None = None  # (B, L) int64: tokens see only those of their number; 0, 1, ... along a row
    own: Any = None  # what a method of the mixer's own adds


class Projected(NamedTuple):
    """What ``project`` returns."""

    matrix: Matrix  # (B or 1, H, L, L_in)
    values: Tensor  # (B, H, L_in, W)
    rest: Any = None  # what merge needs besides the product: gates, skips


def _checking_grid(resize: Callable[..., _MixerT]) -> Callable[..., _MixerT]:
    """A ``resize_`` that gets a grid which is one."""

    @functools.wraps(resize)
    def checked(self: Mixer, grid: Any, **options: Any) -> _MixerT:
        if grid is None:
            raise ValueError(f"{type(self).__name__}: grid must be the new grid, (L,) or (rows, columns), got None")
        grid = check_grid(grid, self.traits, type(self).__name__)
        _LIKE.pop(self, None)  # a state may hang on the grid
        return resize(self, grid, **options)

    return checked


def _checking_batch(begin: Callable[[Any, int], State]) -> Callable[[Any, int], State]:
    """An ``init_state`` that gets a number of samples which is one."""

    @functools.wraps(begin)
    def checked(self: Mixer, batch: int) -> State:
        check_batch(type(self).__name__, batch)
        return begin(self, batch)

    return checked


class Mixer(nn.Module):
    """A sequence mixer, ``x (B, L, D) -> (B, L, D)``: a structured matrix times values.

    Args (of every mixer):
        dim: model width D.
        grid: ``(L,)`` or ``(rows, columns)`` with ``prod(grid) = L``; needed by mixers of fixed length, a default
            for the others.
    """

    traits: Traits  # set on the class; an instance may narrow it (attention(causal=True)) by setting self.traits
    undecayed: ClassVar[frozenset[str]] = frozenset()  # its own parameters that weight decay leaves alone, by name
    optim_settings: ClassVar[dict[str, dict[str, float]]] = {}  # "lr" and "weight_decay" of some, by name

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = checking_options(cls.__init__)  # type: ignore[method-assign]
        if "resize_" in vars(cls):
            cls.resize_ = _checking_grid(cls.resize_)  # type: ignore[method-assign]
        if "init_state" in vars(cls):
            cls.init_state = _checking_batch(cls.init_state)  # type: ignore[method-assign]

    @checking_options
    def __init__(self, dim: int, grid: Grid | None = None) -> None:
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"dim must be a positive integer, got {dim!r}")
        self.dim = dim
        self.grid = check_grid(grid, self.traits, type(self).__name__)

    # ------------------------------------------------------------------ what a mixer writes

    def project(self, x: Tensor, context: Context) -> Projected:
        """Tokens ``(B, L, D)`` to a matrix, its values and the rest.

        Masked tokens come as zeros, whatever stood there; what biases and convolutions make of them is the mixer's to
        leave out.
        """
        raise NotImplementedError

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        """``matrix @ values`` of ``project``, ``(B, H, L, W)``, and the rest.

        Overridden where there is a shorter way than over the matrix. It draws the same random numbers as ``project``,
        and gives the same values and gradients, in training mode too: a law.
        """
        matrix, values, rest = self.project(x, context)
        return matrix.matmul(values), rest

    def mix(self, x: Tensor, context: Context) -> Tensor:
        """Tokens to tokens: ``merge`` of ``product``.

        Overridden by mixers that are made of mixers alone: these call their parts, since hooks hang on a part and its
        weights may be in place only while it is called.
        """
        mixed, rest = self.product(x, context)  # matrix and values are gone: merge needs memory
        return self.merge(mixed, rest)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        """The product ``(B, H, L, W)`` to tokens ``(B, L, D)``; linear in ``mixed`` unless the mixer says otherwise."""
        return merge_heads(mixed)

    @_checking_grid
    def resize_(self, grid: Grid) -> Self:
        """Adapt the parameters to another grid, in place. Mixers of any length only note the grid."""
        self.grid = grid
        return self

    # recurrent mixers only; pure functions of the state they are given. Where no token reaches another there is nothing
    # to remember: the state is empty, and these two are written.

    @_checking_batch
    def init_state(self, batch: int) -> State:
        """The state before the first token."""
        if self._forgets():
            return next(self.parameters(), torch.zeros(0)).new_zeros(batch, 0)
        raise NotImplementedError(f"{type(self).__name__} is not recurrent")

    def absorb(self, x: Tensor, mask: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        """Outputs for tokens ``(B, L, D)`` and the state after them, from the state before (None: ``init_state``).

        Masked tokens come as zeros, and each sample ends with a real token: padding stands before the first one. It is
        as if it were not there, also between the state and the first token. Outputs at masked tokens are not read.
        """
        if self._forgets():
            return self.mix(x, Context((x.shape[1],), mask)), x.new_zeros(x.shape[0], 0)
        raise NotImplementedError(f"{type(self).__name__} is not recurrent")

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """``absorb`` of one token ``(B, D)``, where there is a shorter way."""
        out, state = self.absorb(x.unsqueeze(1), None, state)
        return out.squeeze(1), state

    def _forgets(self) -> bool:
        return self.traits.recurrent and not self.traits.mixes

    # ------------------------------------------------------------------ what a caller uses

    @final  # type: ignore[misc]  # nn.Module declares forward as an attribute
    def forward(
        self, x: Tensor, *, grid: Grid | None = None, mask: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Mix tokens ``(B, L, D)``.

        Args:
            x: tokens; a channels-last image flattened row by row is tokens as it stands.
            grid: the shape of the tokens where it is not the one the mixer was built for.
            mask: ``(B, L)`` bool, True = a real token; what stands at other positions is not read, and outputs there
                are zero.
            segments: ``(B, L)`` integers, for several sequences packed in a row: a run of one number is a sequence, and
                is mixed as if it were alone. See ``matmix.ops.masks.packed_segments`` for cumulative lengths.

        Raises:
            LengthError: a ValueError, for another number of tokens than the grid has; a mixer of fixed length names
                ``resize_``.
            ValueError: for tokens, a grid, a mask or segments that do not fit; for weights of another device or dtype.
        """
        try:
            context = self._context(x, grid, mask, segments)
            out = drop_padding(self.mix(drop_padding(x, mask), context), mask)
        except Exception as error:
            explain(self, error, x, grid=grid, mask=mask, segments=segments)
            raise
        return out if out.dtype == x.dtype else out.to(x.dtype)

    @final
    def matrix(
        self, x: Tensor, *, grid: Grid | None = None, mask: Tensor | None = None, segments: Tensor | None = None
    ) -> Matrix:
        """The matrix that ``forward`` multiplies by for these tokens, ``(B or 1, H, L, L_in)``.

        In training mode too it moves no state, batch norms' statistics included. A mixer with state of its own that
        training moves, or a loss of its own, does as ``matmix.training`` says.
        """
        try:
            context = self._context(x, grid, mask, segments)
            with keeping_statistics(self):
                return self.project(drop_padding(x, mask), context).matrix
        except Exception as error:
            explain(self, error, x, grid=grid, mask=mask, segments=segments)
            raise

    @final
    def prefill(self, x: Tensor, *, mask: Tensor | None = None, state: State | None = None) -> tuple[Tensor, State]:
        """Outputs for a prompt ``(B, L, D)``, or for a further part of it, and the state after it.

        Args:
            x: tokens, at least one.
            mask: ``(B, L)`` bool, True = a real token. Padding at either end is as if it were not there: the state is
                the one after a sample's last real token. A hole, a masked token between real ones, is what it is to
                ``forward``, and that is not nothing: a short convolution reads zeros there; a state whose decay is
                fixed decays by one step (``s4d``, ``ema``, ``mega``, ``longvq``); in ``mamba3`` the token before the
                hole loses the half of its weight that comes with the next token's step. A state whose decay hangs on
                the token stays as it is.
            state: of ``init_state``, ``prefill`` or ``step``; the tokens follow on it. Gradients reach it.

        Raises:
            ValueError: for tokens, a mask or a state that do not fit.
        """
        if not self.traits.recurrent:
            self.init_state(0)  # says what is not recurrent
        try:
            sequence = isinstance(x, Tensor) and x.dim() == 3
            self._context(x, (x.shape[1],) if sequence else None, mask)  # refuses what does not fit
            if state is not None:
                self._check_state(x, state)
            if mask is None:
                out, state = self.absorb(x, None, state)
            else:
                if self.traits.mask != "trim":
                    raise ValueError(
                        f"{type(self).__name__}: prefill takes no mask, as padding changes what real tokens see"
                    )
                order, back = padding_first(mask)
                out, state = self.absorb(in_order(drop_padding(x, mask), order), mask.gather(1, order), state)
                out = drop_padding(in_order(out, back), mask)
        except Exception as error:
            explain(self, error, x, state, mask=mask)
            raise
        return (out if out.dtype == x.dtype else out.to(x.dtype)), state

    @final
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token ``(B, D)`` and the state before it to its output ``(B, D)`` and the state after it.

        Raises:
            ValueError: for a token that does not fit, or a state of another batch.
        """
        if not self.traits.recurrent:
            self.init_state(0)  # says what is not recurrent
        try:
            if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != self.dim or not x.is_floating_point():
                raise ValueError(
                    f"{type(self).__name__}: x must be a token (B, {self.dim}) of floating point, got {shown(x)}"
                )
            if not torch.compiler.is_compiling():
                self._check_state(x, state)
            out, state = self.advance(x, state)
        except Exception as error:
            explain(self, error, x, state)
            raise
        return (out if out.dtype == x.dtype else out.to(x.dtype)), state

    def _check_state(self, x: Tensor, state: State) -> None:
        """A ValueError for a state of another mixer or batch; what is empty at the start may have grown."""
        like = None if torch.compiler.is_compiling() else _LIKE.get(self)
        if like is None:
            like = likeness(self.init_state(1))
            if not torch.compiler.is_compiling() and not in_jit_trace():  # sizes are tensors while torch.jit traces
                _LIKE[self] = like
        if not is_like(state, like, x.shape[0]):
            raise ValueError(
                f"{type(self).__name__}: state must be like that of init_state({x.shape[0]}), "
                f"{described(self.init_state(x.shape[0]))} (0 may have grown), got {described(state)}"
            )

    def _context(self, x: Tensor, grid: Grid | None, mask: Tensor | None, segments: Tensor | None = None) -> Context:
        name = type(self).__name__
        if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[2] != self.dim or not x.is_floating_point():
            raise ValueError(f"{name}: x must be tokens (B, L, {self.dim}) of floating point, got {shown(x)}")
        length = x.shape[1]
        if length == 0:
            raise ValueError(f"{name}: x has no tokens, L must be at least 1, got {tuple(x.shape)}")
        if grid is None:
            grid = self.grid
            if grid is None or (len(grid) == 1 and self.traits.length == "any"):
                grid = (length,)
        elif isinstance(grid, tuple) and known(*grid) and grid == self.grid:  # an open length is not compared with it
            grid = self.grid
        else:
            grid = check_grid(grid, self.traits, name)
        assert grid is not None
        if math.prod(grid) != length or (self.traits.length == "fixed" and grid != self.grid):
            raise LengthError(self._misfit(length, grid))
        if mask is not None:
            if self.traits.mask is None:
                raise ValueError(f"{name} takes no mask: its matrix joins all positions of the built length")
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != x.shape[:2]:
                raise ValueError(
                    f"{name}: mask must be bool of shape {tuple(x.shape[:2])} (True = a real token), got {shown(mask)}"
                )
        if segments is None:
            return Context(grid, mask)
        if not self.traits.packed or len(grid) > 1:
            raise ValueError(f"{name} takes no segments{': they are of sequences' if self.traits.packed else ''}")
        if (
            not isinstance(segments, Tensor)
            or segments.is_floating_point()
            or segments.is_complex()
            or segments.dtype == torch.bool
            or segments.shape != x.shape[:2]
        ):
            raise ValueError(f"{name}: segments must be integers of shape {tuple(x.shape[:2])}, got {shown(segments)}")
        return Context(grid, mask, segments=runs(segments))

    def _misfit(self, length: int, grid: Grid) -> str:
        name = type(self).__name__
        if self.traits.length == "fixed":
            return (
                f"{name} was built for the grid {self.grid} and got {length} tokens on the grid {grid}; "
                f"call resize_(grid) to adapt its parameters"
            )
        return f"{name}: grid must have as many places as x has tokens, {length}, got {grid} of {math.prod(grid)}"

    def no_weight_decay(self) -> set[str]:
        """timm's name of ``matmix.ops.marks.undecayed``: what is not to be decayed here and in all parts."""
        return undecayed(self)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, grid={self.grid}"


_LIKE: WeakKeyDictionary[Mixer, Any] = WeakKeyDictionary()
"""``likeness`` of the states of mixers that have stepped. It stands beside them: an attribute that a call adds is one
more that ``torch.jit.trace`` finds in its second run, and would go into pickles, to be read by later versions."""


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Tokens ``(B, L, H*W)`` as values ``(B, H, L, W)``, a view."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(mixed: Tensor) -> Tensor:
    """Values ``(B, H, L, W)`` as tokens ``(B, L, H*W)``."""
    return mixed.transpose(1, 2).flatten(2)


def drop_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens ``(B, L, D)`` with zeros at masked positions."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)
