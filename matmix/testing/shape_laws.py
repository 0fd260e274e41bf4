"""The laws of open sizes: one program, exported or compiled, for every batch and every length."""

from __future__ import annotations

import torch
from torch.export import Dim

from matmix.mixers.base import Grid, Mixer
from matmix.testing.cases import MixerCase
from matmix.testing.compare import close
from matmix.testing.mixer_laws import traced_law


def _any_length(mixer: Mixer, grid: Grid) -> bool:
    """Whether the mixer promises other lengths than this grid's, and a length alone says which."""
    return mixer.traits.length == "any" and len(grid) == 1


@traced_law
def exports(case: MixerCase) -> None:
    """``torch.export`` with an open batch gives a program with eager's results at several batches."""
    mixer, x = case.build(torch.float32), case.tokens(torch.float32)
    open_axes = {0: Dim("batch", max=1 << 12)}
    torch._dynamo.reset()
    try:
        program = torch.export.export(mixer, (x,), dynamic_shapes={"x": open_axes}).module()
    except Exception as error:  # the exporter raises a dozen kinds
        raise AssertionError(f"torch.export: {type(error).__name__}: {str(error).strip()[:800]}") from error
    for batch in (case.batch, 1, case.batch + 4):
        tokens = case.on(case.grid, batch).tokens(torch.float32, name="others")
        close(program(tokens), mixer(tokens), f"exported program, batch of {batch}")
