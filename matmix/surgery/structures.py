"""The structures of ``level="matrix"``: what may stand in place of the softmax of queries and keys.

A structure is a spec like a mixer's (``"low_rank(8)"``), and serves every adapter that shows a Softmax matrix: queries,
keys, values and all that comes after the product are the old module's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from matmix.adapters import Adapter, Attended, Site, Structured
from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.matrices.identity import Identity
from matmix.matrices.low_rank import LowRank
from matmix.matrices.monarch import Monarch
from matmix.matrices.semiseparable import Semiseparable
from matmix.matrices.softmax import Softmax
from matmix.mixers.base import Context, Grid
from matmix.mixers.cauchy import Reciprocals
from matmix.mixers.linear_attention import normalised, positive
from matmix.mixers.low_rank import Scores
from matmix.mixers.matrix_block import Form, Signals, Structure
from matmix.mixers.matrix_mixer import Free
from matmix.mixers.toeplitz import Lags
from matmix.spec import Spec, hint, parse_spec, unknown_option

STRUCTURES: dict[str, type[MatrixOf]] = {}
_StructureT = TypeVar("_StructureT", bound="type[MatrixOf]")


class Size(NamedTuple):
    """What a structure is built for."""

    heads: int
    width: int  # of the queries and keys of a head
    length: int | None  # tokens; None: not known, or any
    memory: int | None  # tokens that are seen, where they are not the same
    grid: Grid | None  # of the tokens, where they are all of an image


def structure(name: str) -> Callable[[_StructureT], _StructureT]:
    """Put a structure under a name in specs."""

    def enrol(cls: _StructureT) -> _StructureT:
        cls.name = name
        STRUCTURES[name] = cls
        return cls

    return enrol


class MatrixOf(Structured):
    """A structure: with ``causal`` no row sees a later column.

    Subclasses write ``make``. Padded tokens come to it with values of zero, so that they have no influence.
    """

    name: ClassVar[str]
    fixed: ClassVar[bool] = False  # of the length it was built for
    square: ClassVar[bool] = True  # as many rows as columns
    can_be_causal: ClassVar[bool] = False
    keeps_bias: ClassVar[bool] = False  # a bias of the scores, a mask of pairs that is, counts

    def __init__(self, size: Size, causal: bool = False) -> None:
        super().__init__()
        self.size, self.causal = size, causal

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        """The matrix, ``(B or 1, H, L_out, L_in)``."""
        raise NotImplementedError

    def forward(self, found: Attended) -> tuple[Matrix, Tensor]:
        old, values = found.matrix, found.values
        where = self.site.name
        if not isinstance(old, Softmax):
            raise ValueError(f"{where}: {self.name!r} is made of queries and keys, the module has a {old!r}")
        if old.causal and not self.causal and not self.keeps_bias:
            raise ValueError(f"{where}: the call demands causality, {self.name!r} was built without")
        if old.segments is not None and not self.keeps_bias:
            raise ValueError(f"{where}: the call brings packed sequences, which {self.name!r} cannot tell apart")
        if old.bias is not None and not (self.keeps_bias or found.positional):
            raise ValueError(f"{where}: the call brings a mask of pairs of tokens, which {self.name!r} cannot take")
        rows, columns = old.shape[2:]
        if self.causal and rows != columns and not self.keeps_bias:
            raise ValueError(f"{where}: {self.name!r} cannot go on from a cache of keys: generate(use_cache=False)")
        if self.square and rows != columns:
            raise ValueError(f"{where}: {self.name!r} is square, the call has {rows} queries and {columns} keys")
        if self.fixed and columns != self.size.length:
            raise ValueError(f"{where}: {self.name!r} was built for {self.size.length} tokens, got {columns}")
        if old.mask is not None and not self.keeps_bias:
            values = values.masked_fill(~old.mask[:, None, :, None], 0)
        return self.make(old, values), values

    def extra_repr(self) -> str:
        return self.name + (", causal" if self.causal else "")


@structure("softmax")
class Unchanged(MatrixOf):
    """The softmax of queries and keys as it was: what a study needs as its arm without change."""

    square, can_be_causal, keeps_bias = False, True, True

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        return old


@structure("identity")
class NoMixing(MatrixOf):
    """Each token gets its own value: projections of values and outputs without mixing."""

    can_be_causal = True

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        return Identity.like(values)


@structure("zero")
class Nothing(MatrixOf):
    """The zero matrix: what is left are the biases of the end."""

    square, can_be_causal = False, True

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        return LowRank(values.new_zeros(1, 1, old.shape[2], 0), values.new_zeros(1, 1, old.shape[3], 0))


@structure("uniform")
class Uniform(MatrixOf):
    """The mean of all tokens that may be seen."""

    square, can_be_causal = False, True

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        rows, keys = (values.new_ones(1, 1, length, 1) for length in old.shape[2:])
        if old.mask is not None:
            keys = old.mask[:, None, :, None].to(values.dtype)
            rows = rows.expand(keys.shape[0], -1, -1, -1)
        return normalised(rows, keys, causal=self.causal)


class Frozen(MatrixOf):
    """A matrix that is the same for all data and does not learn, a buffer."""

    fixed, can_be_causal = True, True
    entries: Tensor  # (H or 1, L, L)

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        return Dense(self.entries.to(values.dtype).unsqueeze(0))


@structure("random")
class Random(Frozen):
    """RandFormer's matrix: the softmax over the rows of uniform numbers in [0, 1), frozen; one for all heads."""

    def __init__(self, size: Size, causal: bool = False) -> None:
        super().__init__(size, causal)
        scores = torch.rand(1, size.length or 0, size.length or 0)
        self.register_buffer("entries", (_past(scores) if causal else scores).softmax(-1))


@structure("mean_matrix")
class Mean(Frozen):
    """The average of the old matrix over data (``batches=`` of ``replace``), frozen; uniform until that is written."""

    def __init__(self, size: Size, causal: bool = False) -> None:
        super().__init__(size, causal)
        scores = torch.zeros(size.heads, size.length or 0, size.length or 0)
        self.register_buffer("entries", (_past(scores) if causal else scores).softmax(-1))


def _past(scores: Tensor) -> Tensor:
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf)


class Learned(MatrixOf):
    """A structure of ``matrix_mixer`` with learned numbers in place of those that come from tokens."""

    fixed = True
    kind: ClassVar[type[Structure]]

    def __init__(self, size: Size, causal: bool = False, *, rank: int = 1) -> None:
        super().__init__(size, causal)
        assert size.length is not None
        form = Form(data_dependent=False, causal=causal and self.kind is Lags)
        self.learned = self.kind(size.heads, size.width, rank, (size.length,), form)

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        length = values.shape[2]
        empty = values.new_zeros(1, length, 0)
        context = Context((length,), None)
        return self.learned(Signals(values, empty, empty, float(length), context))


@structure("dense")
class FreeMatrix(Learned):
    """One free matrix a head, over ``sqrt(L)``."""

    kind, can_be_causal = Free, True

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        matrix = super().make(old, values)
        return Dense(matrix.to_dense().tril()) if self.causal else matrix


@structure("toeplitz")
class Translations(Learned):
    """One weight a lag and head, over ``2 sqrt(L)``; images row by row."""

    kind, can_be_causal = Lags, True


@structure("low_rank")
class Thin(Learned):
    """``M = Q K^T`` of learned factors of so many columns, or of the tokens' own queries and keys.

    Args:
        rank: columns of the learned factors.
        data_dependent: queries and keys of the tokens instead, without softmax.
    """

    kind, can_be_causal = Scores, True

    def __init__(self, size: Size, rank: int | None = None, causal: bool = False, data_dependent: bool = False) -> None:
        if data_dependent == (rank is not None):
            raise ValueError(
                f"low_rank needs rank=, or data_dependent=True and no rank: got {rank=}, {data_dependent=}"
            )
        if rank is not None and (not isinstance(rank, int) or rank < 1):
            raise ValueError(f"rank must be a positive integer, got {rank!r}")
        if data_dependent:
            MatrixOf.__init__(self, size, causal)
            self.fixed, self.square = False, False  # type: ignore[misc]
        else:
            super().__init__(size, causal, rank=rank or 1)
        self.data_dependent = data_dependent

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        if self.data_dependent:
            scale = (_count(old) * old.query.shape[3]) ** -0.5
            matrix: Matrix = LowRank(old.query * scale, old.key)
        else:
            matrix = super().make(old, values)
        if not self.causal:
            return matrix
        assert isinstance(matrix, LowRank)
        return Semiseparable(matrix.left, matrix.right, matrix.left.new_zeros(1, *matrix.left.shape[1:3]))


@structure("monarch")
class TwoFactors(MatrixOf):
    """One Monarch matrix a head, over the rows and columns of an image, or of the grid nearest to a square."""

    fixed = True

    def __init__(self, size: Size, causal: bool = False) -> None:
        super().__init__(size, causal)
        assert size.length is not None
        rows, columns = size.grid if size.grid and len(size.grid) == 2 else Monarch.split(size.length)
        self.left = nn.Parameter(torch.randn(size.heads, columns, rows, rows) * rows**-0.5)
        self.right = nn.Parameter(torch.randn(size.heads, rows, columns, columns) * columns**-0.5)

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        return Monarch(self.left.unsqueeze(0), self.right.unsqueeze(0))


@structure("linear")
class Features(MatrixOf):
    """Linear attention: ``phi(q_i) . phi(k_j)`` over its sum along the row, with ``phi = elu + 1``."""

    square, can_be_causal = False, True

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        query, key = positive(old.query), positive(old.key)
        if old.mask is not None:
            key = key.masked_fill(~old.mask[:, None, :, None], 0)
        return normalised(query, key, causal=self.causal)


@structure("cauchy")
class Meeting(MatrixOf):
    """``sum_d 1 / (exp q_{i,d} + exp k_{j,d} + 2 c) / sqrt(L E)``, c learned: ``matrix_mixer``'s."""

    square = False

    def __init__(self, size: Size, causal: bool = False) -> None:
        super().__init__(size, causal)
        self.scores = Reciprocals(size.heads, size.width, size.width, None, Form())

    def make(self, old: Softmax, values: Tensor) -> Matrix:
        return self.scores.mixing(old.query, old.key, _count(old), None)


def _count(old: Softmax) -> Tensor | float:
    """Number of tokens that may be seen, which scales a matrix: a number, or ``(B, 1, 1, 1)``."""
    if old.mask is None:
        return float(old.shape[3])
    return old.mask.sum(1).clamp(min=1).to(old.query.dtype)[:, None, None, None]


def build(spec: str, site: Site, adapter: Adapter) -> MatrixOf:
    """The structure of a spec for a site.

    Raises:
        ValueError: for an unknown structure or option, and for what does not fit the site, with the site's name.
    """
    calls = parse_spec(spec)
    if len(calls) != 1:
        raise ValueError(f"{site.name}: spec {spec!r} names {len(calls)} structures, a site takes one")
    (call,) = calls
    if call.name not in STRUCTURES:
        raise ValueError(f"{site.name}: unknown structure {call.name!r} of level='matrix'{hint(call.name, STRUCTURES)}")
    kind = STRUCTURES[call.name]
    options = _options(call, kind)
    causal = bool(options.pop("causal", site.causal or False))
    if causal and not kind.can_be_causal:
        raise ValueError(f"{site.name}: the site is causal, the structure {call.name!r} is not and cannot be")
    if site.causal and not causal:
        raise ValueError(f"{site.name}: the site is causal, {spec!r} is not")
    learned = options.get("order") is not None
    square = kind.square and not options.get("data_dependent")
    if square and site.kind == "cross_attention":
        raise ValueError(f"{site.name}: {call.name!r} is square, cross attention has queries and keys of two sequences")
    more = site.options.get("more_keys")
    if more and (square or (causal and not kind.keeps_bias)):
        why = "is square" if square else "is causal by the places of keys"
        raise ValueError(f"{site.name}: {call.name!r} {why}, and {more} adds keys that are no tokens")
    fixed = (kind.fixed and not options.get("data_dependent")) or learned
    if fixed and site.length is None:
        raise ValueError(
            f"{site.name}: {call.name!r} has a fixed length, and the site's "
            + (f"varies: {', '.join(map(str, site.seen))}" if site.seen else "is not known before a run: give example=")
        )
    if site.heads is None or site.head_dim is None:
        raise ValueError(f"{site.name}: level='matrix' is for attention, and {site.adapter!r} knows no heads there")
    grid = site.grid if not site.prefix else None
    try:
        made = kind(Size(site.heads, site.head_dim, site.length, site.memory, grid), causal=causal, **options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{site.name}: {error}") from error
    made.site, made.adapter = site, adapter
    return made


def _options(call: Spec, kind: type[MatrixOf]) -> dict[str, Any]:
    allowed = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "size")]
    if kind.__init__ is Learned.__init__:
        allowed.remove("rank")
    named = [name for name in allowed if name != "causal"]
    if len(call.args) > len(named):
        raise ValueError(f"{call.name} takes at most {len(named)} positional options, got {len(call.args)}")
    options = dict(zip(named, call.args, strict=False))
    for name, value in call.options:
        if name not in allowed:
            raise ValueError(unknown_option(call.name, name, allowed))
        options[name] = value
    return options
