"""ablate: for a while, another matrix in the place of one that a trained model multiplies by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from matmix.adapters import Attended, Found, Place, Replacement, Site, discover, recognise
from matmix.adapters.discovery import EDITS, ByMatrix
from matmix.adapters.held import holding
from matmix.arguments import checking_arguments
from matmix.inspect.recording import Recorded, Watched
from matmix.matrices.algebra import Product
from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.low_rank import LowRank
from matmix.matrices.selection import Selection
from matmix.matrices.softmax import Softmax
from matmix.mixers.base import Context, Mixer, Projected
from matmix.mixers.linear_attention import normalised
from matmix.ops.seed import fork_seed
from matmix.ranges import Seed, shown
from matmix.spec import hint
from matmix.surgery.average import mean_matrices
from matmix.surgery.find import Sites
from matmix.surgery.refuse import refuse_wrappers
from matmix.surgery.select import Where, select

Change = Callable[["Ablation", Matrix, Tensor, "Seen"], tuple[Matrix, Tensor]]
HOW: dict[str, Change] = {}


@dataclass(frozen=True)
class Seen:
    """What is known of one call."""

    mask: Callable[[], Tensor | None]  # (B, L), True = a real token; asked only where it counts
    causal: bool


@dataclass(frozen=True)
class Ablation:
    """One site's ablation."""

    site: Site
    how: str
    seed: int = 0
    mean: Tensor | None = None  # (H, L, L)

    def __call__(self, matrix: Matrix, values: Tensor, seen: Seen) -> tuple[Matrix, Tensor]:
        return HOW[self.how](self, matrix, values, seen)

    def square(self, matrix: Matrix) -> int:
        """The number of tokens of a matrix that has to be square."""
        rows, columns = matrix.shape[2:]
        if rows != columns:
            raise ValueError(f"{self.site.name}: {self.how!r} is of square matrices, this one is {rows} x {columns}")
        return columns


@checking_arguments(leave=("where", "exclude"))
@contextmanager
def ablate(
    model: nn.Module,
    where: Where = "all",
    how: str = "zero",
    *,
    batches: Iterable[Any] | None = None,
    seed: Seed = 0,
    exclude: Where | None = None,
    layers: int | Iterable[int] | slice | None = None,
) -> Iterator[Sites]:
    """Inside of the context, chosen sites multiply by another matrix than theirs; leaving it restores.

    ::

        with surgery.ablate(model, "blocks.3.attn", "uniform"):
            accuracy = evaluate(model)

    Everything else of a site stays: queries, keys, values, gates and the output projection. Gradients flow as they
    would. ``record`` and ``matrices`` inside show the matrix that runs then. Ablations nest, also at one site: the
    inner one changes what the outer one made.

    Args:
        model: with sites (``surgery.find``), ours or foreign, replaced or not; not compiled.
        where, exclude, layers: which sites, in the words of ``surgery.select``. Of a mixer that is made of others
            (``heads("attention", "ssd")``) each part alone too, by its name: ``"blocks.0.mixer.parts.1"``.
        how:
            - ``"zero"``: no mixing term.
            - ``"diagonal"``: each token sees itself alone, as much as before.
            - ``"shuffle_rows"``: each token gets the row of another one, by one order a site and length, drawn from
              the seed; padding keeps its rows. Causality goes.
            - ``"mean"``: the average of the site's matrices over ``batches``, for all samples.
            - ``"uniform"``: the mean of all tokens that may be seen: no padding, and none that come later where the
              site is causal.
        batches: inputs of the model without padding, for ``"mean"``: tensors, tuples of arguments or dicts of them by
            name.
        seed: of ``"shuffle_rows"``.

    Yields:
        The sites that are ablated.

    Raises:
        ValueError: for another ``how``, for sites that match nothing or whose matrix nobody knows. In a call: for a
            matrix that is not square or has another size than the mean.
        RuntimeError: where an ablated mixer is run token by token (``step``, ``prefill``), which multiplies by no
            matrix.
    """
    if how not in HOW:
        raise ValueError(f"how must be one of {', '.join(map(repr, HOW))}, got {how!r}{hint(str(how), HOW)}")
    if (batches is not None) != (how == "mean"):
        raise ValueError(
            f"batches are what how='mean' is the average over, and for it only, got {how!r}, batches={shown(batches)}"
        )
    refuse_wrappers(model)
    chosen = _chosen(model, where, exclude, layers)
    means = mean_matrices(model, chosen, batches) if batches is not None else {}
    settings = [s for one in chosen for s in one.adapter.settings(one.site, Place(one.site.name, one.module, model))]
    undo: list[tuple[nn.Module, str, Any]] = []
    try:
        for one in chosen:
            _put(one, Ablation(one.site, how, seed, means.get(one.site.name)), undo)
        with torch.compiler.set_stance("force_eager"), holding(settings):
            yield Sites([one.site for one in chosen])
    finally:
        for module, name, before in reversed(undo):
            module.__dict__.pop(name, None)
            if before is not None:
                module.__dict__[name] = before


# ------------------------------------------------------------------ what takes the matrix's place


def _how(name: str) -> Callable[[Change], Change]:
    def enrol(change: Change) -> Change:
        HOW[name] = change
        return change

    return enrol


@_how("zero")
def _zero(self: Ablation, matrix: Matrix, values: Tensor, seen: Seen) -> tuple[Matrix, Tensor]:
    return LowRank(*(values.new_zeros(*matrix.shape[:2], size, 0) for size in matrix.shape[2:])), values


@_how("diagonal")
def _diagonal(self: Ablation, matrix: Matrix, values: Tensor, seen: Seen) -> tuple[Matrix, Tensor]:
    self.square(matrix)
    return Diagonal(matrix.diagonal()), values


@_how("shuffle_rows")
def _shuffle_rows(self: Ablation, matrix: Matrix, values: Tensor, seen: Seen) -> tuple[Matrix, Tensor]:
    length, mask = matrix.shape[2], seen.mask()
    with fork_seed(self.seed, f"{self.site.name}.{length}"):
        drawn = torch.rand(1, length, device="cpu").to(values.device)
    place = torch.arange(length, device=values.device).unsqueeze(0)
    order = drawn.argsort(1)
    if mask is not None:  # the n-th real token gets the row of the n-th in the order that was drawn of them
        if mask.shape[1] != length:
            raise ValueError(f"{self.site.name}: {self.how!r} got {length} rows and a mask of {mask.shape[1]} tokens")
        here = place.masked_fill(~mask, 0) + place.add(length).masked_fill(mask, 0)
        there = drawn.expand(mask.shape).masked_fill(~mask, 0) + place.add(2).masked_fill(mask, 0)
        order = torch.empty_like(here).scatter_(1, here.argsort(1), there.argsort(1))
    return Product.of(Selection.of(order.unsqueeze(1), length, values.dtype), matrix), values


@_how("mean")
def _mean(self: Ablation, matrix: Matrix, values: Tensor, seen: Seen) -> tuple[Matrix, Tensor]:
    assert self.mean is not None
    if tuple(self.mean.shape) != tuple(matrix.shape[1:]):
        was, now = tuple(self.mean.shape), tuple(matrix.shape[1:])
        raise ValueError(f"{self.site.name}: its mean matrix is {was}, that of the call {now}")
    return Dense(self.mean.to(values).unsqueeze(0)), _unpadded(values, seen.mask())


@_how("uniform")
def _uniform(self: Ablation, matrix: Matrix, values: Tensor, seen: Seen) -> tuple[Matrix, Tensor]:
    if isinstance(matrix, Softmax):  # of scores that are all the same, where they are not ruled out
        bias = matrix.bias
        if bias is not None:
            bias = bias.masked_fill(bias > torch.finfo(bias.dtype).min / 2, 0)
        return replace(matrix, query=torch.zeros_like(matrix.query), bias=bias), values
    self.square(matrix)
    ones = values.new_ones(1, 1, matrix.shape[2], 1)
    mask = seen.mask()
    keys = ones if mask is None else mask[:, None, :, None].to(values.dtype)
    return normalised(ones.expand(keys.shape[0], -1, -1, -1), keys, causal=seen.causal), _unpadded(values, mask)


def _unpadded(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values.masked_fill(~mask[:, None, :, None], 0)


# ------------------------------------------------------------------ where it is put


def _chosen(
    model: nn.Module, where: Where, exclude: Where | None, layers: int | Iterable[int] | slice | None
) -> list[Found]:
    """The sites that are meant; parts of mixers where the words are theirs alone."""
    outer = {one.site.name: one for one in discover(model)}
    inner = {one.site.name: one for one in _parts(model, outer.values())}
    try:
        sites = select([one.site for one in outer.values()], where, exclude=exclude, layers=layers)
    except ValueError:
        if not inner:
            raise
        every = [one.site for one in (*outer.values(), *inner.values())]
        sites = select(every, where, exclude=exclude, layers=layers)
    found = [{**outer, **inner}[site.name] for site in sites]
    for one in found:
        if one.adapter.last:
            raise ValueError(f"{one.site.name}: cannot be ablated: {one.site.refused['module']}")
    return found


def _parts(model: nn.Module, outer: Iterable[Found]) -> Iterator[Found]:
    """The mixers inside of the mixers at the sites."""
    for one in outer:
        at = one.site.name
        mixer, at = (one.module.mixer, f"{at}.mixer") if isinstance(one.module, Replacement) else (one.module, at)
        if isinstance(mixer, Mixer):
            for name, module in mixer.named_modules():
                if name and isinstance(module, Mixer):
                    part = recognise(Place(f"{at}.{name}" if at else name, module, model))
                    assert part is not None
                    yield part


def _put(one: Found, ablation: Ablation, undo: list[tuple[nn.Module, str, Any]]) -> None:
    def hide(module: nn.Module, name: str, value: Any) -> None:
        undo.append((module, name, module.__dict__.get(name)))
        module.__dict__[name] = value  # an attribute of the instance hides the method of the class

    module = one.module.mixer if isinstance(one.module, Replacement) else one.module
    if not isinstance(module, Mixer):
        hide(module, EDITS, (*module.__dict__.get(EDITS, ()), _Edit(ablation)))
        if not isinstance(module.__dict__.get("forward"), Watched):  # which asks for the matrix, and notes it
            hide(module, "forward", ByMatrix(one))
        return
    hide(module, "project", _Project(module, ablation, module.__dict__.get("project")))
    if not isinstance(module.__dict__.get("mix"), Recorded):
        hide(module, "mix", Recorded(module, ()))
    for name in ("absorb", "advance"):
        hide(module, name, _Refused(ablation.site.name, ablation.how))


@dataclass(frozen=True)
class _Project:
    """``project`` of a mixer, with another matrix."""

    mixer: Mixer
    ablation: Ablation
    before: Any  # of an ablation around this one

    def __call__(self, x: Tensor, context: Context) -> Projected:
        before = type(self.mixer).project.__get__(self.mixer) if self.before is None else self.before
        matrix, values, rest = before(x, context)
        seen = Seen(lambda: context.mask, self.mixer.traits.causal)
        matrix, values = self.ablation(matrix, values, seen)
        return Projected(matrix, values, rest)


@dataclass(frozen=True)
class _Edit:
    """What a foreign site is told to multiply by instead."""

    ablation: Ablation

    def __call__(self, one: Found, told: Attended, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        def mask() -> Tensor | None:
            call = one.adapter.read(one.site, args, kwargs)
            if call.unfit is not None:
                raise ValueError(f"{one.site.name}: {call.unfit}, which {self.ablation.how!r} cannot take")
            return call.mask

        matrix, values = self.ablation(told.matrix, told.values, Seen(mask, bool(one.site.causal)))
        return told._replace(matrix=matrix, values=values)


@dataclass(frozen=True)
class _Refused:
    name: str
    how: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            f"{self.name} is ablated ({self.how!r}) and cannot be run token by token, which multiplies by no matrix"
        )
