"""The laws of open sizes: one program, exported or compiled, for every batch and every length."""

from __future__ import annotations

import torch
from torch.export import Dim

from matmix.mixers.base import Grid, Mixer
from matmix.testing.cases import MixerCase
from matmix.testing.compare import close
from matmix.testing.mixer_laws import slow_law, some_mask, traced_law

LENGTHS = (2, 5, 31, 64, 100)
"""Lengths at which a program that is open in its length runs: shorter and longer than a chunk of any scan."""


def _any_length(mixer: Mixer, grid: Grid) -> bool:
    """Whether the mixer promises other lengths than this grid's, and a length alone says which."""
    return mixer.traits.length == "any" and len(grid) == 1


def _export(case: MixerCase, open_axes: dict[int, Dim], sizes: list[MixerCase]) -> None:
    """Export with some axes of the tokens open, and run the program at every size."""
    mixer = case.build(torch.float32)
    torch._dynamo.reset()
    try:
        tokens = case.tokens(torch.float32)
        program = torch.export.export(mixer, (tokens,), dynamic_shapes={"x": open_axes}).module()
    except Exception as error:  # the exporter raises a dozen kinds
        raise AssertionError(f"torch.export: {type(error).__name__}: {str(error).strip()[:800]}") from error
    for size in sizes:
        tokens = size.tokens(torch.float32, name="others")
        close(program(tokens), mixer(tokens), f"exported program, batch of {size.batch}, {size.length} tokens")


@traced_law
def exports(case: MixerCase) -> None:
    """``torch.export`` with an open batch gives a program with eager's results at several batches."""
    sizes = [case.on(case.grid, batch) for batch in (case.batch, 1, case.batch + 4)]
    _export(case, {0: Dim("batch", max=1 << 12)}, sizes)


@slow_law
def exports_any_length(case: MixerCase) -> None:
    """Where the length is any, one exported program serves all lengths from two tokens on, and all batches."""
    if not _any_length(case.build(torch.float32), case.grid):
        return
    sizes = [case.on((length,), 1 + number) for number, length in enumerate(LENGTHS)]
    _export(case, {0: Dim("batch", max=1 << 12), 1: Dim("length", min=2, max=1 << 16)}, sizes)


@slow_law
def compiles_at_several_sizes(case: MixerCase) -> None:
    """``torch.compile(dynamic=True, fullgraph=True)``, forward and backward, runs at several batches, and at several
    lengths if the mixer promises those.

    With a mask if the mixer takes one: of the two graphs, of which each takes seconds, that is the one with more in it.
    """
    mixer = case.build(torch.float32)
    sizes = [case, case.on(case.grid, batch=case.batch + 2)]
    if _any_length(mixer, case.grid):
        sizes += [case.on((length,), case.batch + number) for number, length in enumerate(LENGTHS)]
    torch._dynamo.reset()
    try:
        run = torch.compile(mixer, fullgraph=True, dynamic=True, backend="aot_eager")
        for size in sizes:
            x, mask = size.tokens(torch.float32), None if mixer.traits.mask is None else some_mask(size)
            expected = mixer(x, mask=mask)  # first: an error of the mixer's own is not told in the compiler's words
            close(run(x, mask=mask), expected, f"compiled, {size}")
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"torch.compile(fullgraph=True): {str(error).strip()[:800]}") from error
    finally:
        torch._dynamo.reset()
