"""explain: which structured matrices the heads of a trained model are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from matmix.adapters import Found, Replacement, discover
from matmix.adapters.discovery import called
from matmix.arguments import checking_arguments
from matmix.cost import evaluating
from matmix.inspect.recording import Ran, watched, watching
from matmix.mixers.base import Grid
from matmix.ops.precision import working_dtype
from matmix.ranges import Count, Portion, Several
from matmix.surgery.distances import Measurement, check_classes, ladders, tokens_of
from matmix.surgery.explanation import Explanation, Head
from matmix.surgery.select import Where, select

Progress = Callable[[dict[str, Any]], None]
AT_ONCE = 2**28  # entries of one batch at one site


@checking_arguments(leave=("where",))
def explain(
    model: nn.Module,
    batches: Iterable[Any],
    where: Where = "all",
    *,
    classes: Sequence[str] | None = None,
    tolerance: Portion = 0.05,
    share: Portion = 0.25,
    samples: Several = 8,
    max_heads: Count = 16,
    max_tokens: Count = 256,
    progress: Progress | None = None,
    **narrow: Any,
) -> Explanation:
    """For every site and head: how far its matrices are from each class of structured matrices, and which is smallest.

    ::

        found = surgery.explain(model, batches)
        print(found)                   # blocks.0.attn  0  convolution(kernel=3), one for all data, to 1.2 %, ...
        found.picture("attention.png")
        found.rows                     # every head and class, as plain data

    The matrices are those that run (``matmix.inspect.record``), the classes and their members those of
    ``matmix.project``, at the sizes of ``projection_info(name).specs(grid)`` and, where a class may be the smallest, at
    those between. Sizes beyond the one at which all heads of a site fit are not measured, nor those beyond ``share``.

    *Operations* are those of the product with a given member. Where each input has a matrix of its own, making that
    member comes on top (for a softmax, making the scores is in the old number).

    *Prefix tokens* (class token, registers) have no place in a grid. What they give and what they read, their columns
    and rows, is set aside; classes, errors and free numbers are of the block of the other tokens, and ``aside`` says
    how much was set aside. The operations of an explanation include those rows and columns as they are.

    The model runs in eval mode and without gradients, once a batch and site; only one site's matrices are in memory at
    a time. Modes and methods are as before afterwards. A model of 12 layers of 3 heads and 197 tokens takes a few
    minutes of one core, most of it for ``quasiseparable`` and ``semiseparable``; name ``classes`` to have less.

    Args:
        model: any model with sites (``surgery.find``).
        batches: inputs of the model, a few: a tensor, tuple or dict each, without padding, all of one length. All
            matrices of one site and batch are written out at once: keep batches small.
        where: which sites, with ``exclude=`` and ``layers=`` as ``select`` takes them. ``"all"`` are those that
            ``record`` notes.
        classes: names (all sizes) or specs with options (``"low_rank(4)"``, as they are); all but ``dense`` if absent.
        tolerance: the largest relative error of a class that is said to fit.
        share: what explains has at most so many free numbers, as a share of those of any matrix of that size (of any
            causal one, where they are causal). At 1 ``row_stochastic``, which every softmax is, would explain it.
        samples: matrices of a head that are looked at, at least 2.
        max_heads: of one site; of more, this many evenly spaced ones (a convolution has one head a channel).
        max_tokens: sites with more tokens are skipped and listed in ``skipped``: the work grows with their cube.
        progress: called after each site and class with ``step`` and ``steps``.
        narrow: ``exclude=`` and ``layers=``.

    Raises:
        ValueError: for padded batches, for a site whose length varies, for fewer than 2 inputs (a fixed matrix could
            not be told from any other), for classes that are unknown, and if no site is left to be explained.
    """
    check_classes(classes)
    found = [one for one in discover(model) if not one.adapter.last]
    if where == "all":
        names = {name for part in watched(model) for name in part}
        found = [one for one in found if (one.site.name or type(model).__name__) in names]
    if not found:
        raise ValueError(f"{type(model).__name__} has no site whose matrix is known (surgery.find lists them)")
    wanted = {site.name for site in select([one.site for one in found], where, **narrow)}
    chosen = [one for one in found if one.site.name in wanted]
    inputs, heads, skipped = _Inputs(batches), [], {}
    for index, one in enumerate(chosen):
        taken = _Taken(one, samples, max_heads, max_tokens)
        taken.collect(model, inputs)
        name = one.site.name or type(model).__name__
        if taken.skip is not None or not taken.calls:
            skipped[name] = taken.skip or "it did not run, or shows no matrix"
            if progress is not None:
                progress({"step": 1000 * (index + 1), "steps": 1000 * len(chosen)})
            continue
        for nth, (key, call) in enumerate(taken.calls.items()):
            part = (index + nth / len(taken.calls), 1 / len(taken.calls), len(chosen))
            heads += _explained(key, call, classes, tolerance, share, part, progress)
    if not heads:
        reasons = "; ".join(f"{k}: {v}" for k, v in skipped.items())
        raise ValueError(f"no site can be explained: {reasons}; there must be one")
    return Explanation(tuple(heads), tolerance, skipped)


class _Inputs:
    """Batches that can be gone through again, taken from the iterable as they are needed."""

    def __init__(self, batches: Iterable[Any]) -> None:
        if isinstance(batches, Tensor):
            raise ValueError(f"batches must be an iterable of inputs, got a tensor {tuple(batches.shape)}: give [x]")
        self.rest, self.seen = iter(batches), list[Any]()

    def __iter__(self) -> Iterator[Any]:
        yield from self.seen
        for batch in self.rest:
            self.seen.append(batch)
            yield batch


@dataclass
class _Call:
    """The matrices of one call of a site, over the batches."""

    grid: Grid | None  # of the tokens behind the prefix
    prefix: int
    width: int  # of the values of a head
    heads: tuple[int, ...]  # those that are looked at
    of: int  # heads there are
    flops: int  # of the old product, for one sequence and head
    shape: tuple[int, ...]  # heads and tokens of the matrix
    entries: list[Tensor] = field(default_factory=list)  # (samples, H, L, L) each
    inputs: int = 0


class _Skip(Exception):
    """A site that cannot be explained; ends the forward."""


@dataclass
class _Taken:
    """The matrices of one site, taken while the model runs."""

    one: Found
    samples: int
    max_heads: int
    max_tokens: int
    calls: dict[str, _Call] = field(default_factory=dict)
    skip: str | None = None

    def collect(self, model: nn.Module, inputs: _Inputs) -> None:
        """Run the model until there are as many samples as asked for."""
        times = 0

        def note(ran: Ran) -> None:
            nonlocal times
            times += 1
            self._take(ran.name if times == 1 else f"{ran.name}#{times}", ran)

        with evaluating(model), torch.no_grad(), watching(model, note, [self.one]):
            for batch in inputs:
                times = 0
                try:
                    called(model, batch, "batches")
                except _Skip as skip:
                    self.skip = str(skip)
                    return
                if not times or min(call.inputs for call in self.calls.values()) >= self.samples:
                    break
        for name, call in self.calls.items():
            if call.inputs < 2:
                raise ValueError(f"{name}: batches hold {call.inputs} input; a fixed matrix shows from 2 on")

    def _take(self, name: str, ran: Ran) -> None:
        batch, heads, rows, columns = ran.matrix.shape
        if not all(bool(mask.all()) for mask in ran.masks):
            raise ValueError(f"{name}: batches have padding, and a padded matrix has no structure: give whole inputs")
        if max(rows, columns) > self.max_tokens:
            raise _Skip(f"{max(rows, columns):,} tokens are more than max_tokens={self.max_tokens}")
        if batch * heads * rows * columns > AT_ONCE:
            raise ValueError(f"{name}: the matrices of one batch, {ran.matrix!r}, are too large: give smaller batches")
        call = self.calls.get(name)
        if call is None:
            call = self.calls[name] = self._first(ran)
        elif call.shape != (heads, rows, columns):
            raise ValueError(
                f"{name}: its matrix varies in size, {call.shape} and {(heads, rows, columns)}: batches of one length"
            )
        dense = ran.matrix.to_dense()
        if not dense.is_floating_point() or not bool(dense.isfinite().all()):
            raise _Skip(f"entries of {dense.dtype} that are not all finite real numbers")
        left = self.samples - sum(len(part) for part in call.entries)
        part = dense[: max(left, 0), list(call.heads)].to("cpu", working_dtype(dense), copy=True)
        call.inputs += ran.values.shape[0]
        # A matrix without data comes once a batch and is always the same: one is enough.
        if not (batch == 1 and call.entries and torch.equal(part, call.entries[0][:1])):
            call.entries.append(part)

    def _first(self, ran: Ran) -> _Call:
        batch, heads, rows, columns = ran.matrix.shape
        site, own = self.one.site, getattr(ran.matrix, "grid", None)
        aside = isinstance(self.one.module, Replacement) and site.prefix_as == "aside"
        prefix = site.prefix if rows == columns > site.prefix and not aside else 0
        fit = (g for g in (own, ran.grid, site.grid) if g is not None and math.prod(g) == rows - prefix)
        grid = next(fit, None) if rows == columns else None
        chosen = tuple(at * heads // min(heads, self.max_heads) for at in range(min(heads, self.max_heads)))
        shared = ran.values.shape[1] if heads == 1 else 1  # one matrix serves the values of all heads
        width = ran.values.shape[3] * shared
        flops = ran.matrix.cost(width).flops // max(batch * heads, 1)
        return _Call(grid, prefix, width, chosen, heads, flops, (heads, rows, columns))


def _explained(
    name: str,
    call: _Call,
    classes: Sequence[str] | None,
    tolerance: float,
    share: float,
    part: tuple[float, float, int],
    progress: Progress | None,
) -> list[Head]:
    """The heads of one call of a site; ``part`` is where it begins and how long it is, in sites, and their number."""
    entries = torch.cat(call.entries)
    whole = entries.double().square().sum((0, 2, 3))
    block = entries[:, :, call.prefix :, call.prefix :]
    kept = block.double().square().sum((0, 2, 3))
    aside = (1 - kept / whole.where(whole > 0, 1)) * (whole > 0)
    rows, columns = block.shape[2:]
    steps = ladders(classes, rows, columns, tokens_of(call.grid, columns))
    # The prefix as it is: its columns for all tokens, its rows for the others.
    extra = 2 * call.width * call.prefix * (2 * rows + call.prefix)
    measurement = Measurement(block, call.grid, call.width, tolerance=tolerance, share=share, extra_flops=extra)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            at = part[0] + part[1] * done / len(steps)
            progress({"step": round(1000 * at), "steps": 1000 * part[2]})

    try:
        measured = measurement.run(steps, tick)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return [
        Head(
            site=name,
            head=call.heads[at],
            of=call.of,
            tokens=columns,
            grid=call.grid,
            prefix=call.prefix,
            samples=len(entries),
            inputs=call.inputs,
            causal=measurement.causal,
            free=measurement.whole,
            flops=call.flops,
            aside=float(aside[at]),
            mean=measurement.mean[0, at].clone(),
            measured=one,
        )
        for at, one in enumerate(measured)
    ]
