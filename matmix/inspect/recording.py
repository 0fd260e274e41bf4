"""Capture the matrices that run inside of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from matmix.cost import evaluating
from matmix.matrices.base import Matrix
from matmix.mixers.base import Context, Mixer


@contextmanager
def record(model: nn.Module) -> Iterator[dict[str, Matrix]]:
    """Inside of the context, every forward of ``model`` notes the matrices that it multiplies by.

    Meanwhile a mixer takes no shorter way (``Mixer.mix``): it multiplies by the matrix that is noted.

    The dictionary that is yielded maps a mixer's name in the model to its matrix, that of the forward, with its graph
    where gradients are on. A mixer that runs again adds ``name#2``, ``name#3``; a mixer inside of another
    one is part of that one's matrix. A model that is itself a mixer goes by its class name. Compiled models run
    uncompiled meanwhile.

    Raises:
        ValueError: if there is no mixer in the model.
    """
    mixers = outer_mixers(model)
    if not mixers:
        raise ValueError(f"{type(model).__name__} contains no Mixer; replace its token mixers first (matmix.surgery)")
    found: dict[str, Matrix] = {}
    before = {name: mixer.__dict__.get("mix") for name, mixer in mixers.items()}
    with torch.compiler.set_stance("force_eager"):
        try:
            for name, mixer in mixers.items():
                around = before[name]  # a recording around this one, which notes as well
                notes = around.notes if isinstance(around, _Recorded) else ()
                # An attribute of the instance hides the method of the class.
                mixer.__dict__["mix"] = _Recorded(mixer, (*notes, (found, name)))
            yield found
        finally:
            for name, mixer in mixers.items():
                del mixer.__dict__["mix"]
                if before[name] is not None:
                    mixer.__dict__["mix"] = before[name]


def matrices(model: nn.Module, *inputs: Any, **options: Any) -> dict[str, Matrix]:
    """The matrix of every mixer in one forward ``model(*inputs, **options)``, by the mixer's name, in order of use.

    The forward runs in eval mode and without gradients; modes and methods are as before afterwards, errors included.
    Masks and grids go where the model takes them: ``matrices(model, x, mask=mask)``.

    Raises:
        ValueError: if no mixer is in the model, or none of its mixers ran.
    """
    with evaluating(model), torch.no_grad(), record(model) as found:
        model(*inputs, **options)
    if not found:
        raise ValueError(f"no mixer of {type(model).__name__} ran: {', '.join(outer_mixers(model))}")
    return found


def outer_mixers(model: nn.Module) -> dict[str, Mixer]:
    """The mixers of a model that are not inside of another mixer, each once, by name."""
    found: dict[str, Mixer] = {}
    if isinstance(model, Mixer):
        return {type(model).__name__: model}
    inner: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, Mixer):
            if not any(name.startswith(f"{outer}.") for outer in inner):
                found[name] = module
            inner.add(name)
    return found


@dataclass(frozen=True)
class _Recorded:
    """The way from tokens to tokens over the matrix, which is noted."""

    mixer: Mixer
    notes: tuple[tuple[dict[str, Matrix], str], ...]  # where, and under which name

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        matrix, values, rest = self.mixer.project(x, context)
        for found, name in self.notes:
            key, times = name, 1
            while key in found:
                times += 1
                key = f"{name}#{times}"
            found[key] = matrix
        return self.mixer.merge(matrix.matmul(values), rest)
