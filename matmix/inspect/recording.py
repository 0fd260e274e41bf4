"""Capture the matrices that run inside of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from matmix.adapters import Found, Place, Replacement, discover
from matmix.adapters.base import entries
from matmix.adapters.discovery import ByMatrix
from matmix.adapters.held import holding
from matmix.arguments import checking_arguments
from matmix.cost import evaluating
from matmix.matrices.base import Matrix
from matmix.mixers.base import Context, Grid, Mixer


@checking_arguments()
@contextmanager
def record(model: nn.Module) -> Iterator[dict[str, Matrix]]:
    """Inside of the context, every forward of ``model`` notes the matrices that it multiplies by.

    Meanwhile a mixer takes no shorter way (``Mixer.mix``): it multiplies by the matrix that is noted. So does a foreign
    module that an adapter knows (attention of timm, depthwise convolutions, ...; ``matmix.surgery.find`` lists them).

    The dictionary that is yielded maps a site's name in the model to its matrix, that of the forward, with its graph
    where gradients are on. A site that runs again adds ``name#2``, ``name#3``; a mixer inside of another
    one is part of that one's matrix. A model that is itself a mixer goes by its class name. In a model that is built of
    our mixers, convolutions and poolings beside them are not noted: they belong to stems and channel MLPs. Compiled
    models run uncompiled meanwhile. Probabilities with dropout are noted after it, as they ran.

    Raises:
        ValueError: if no token mixes in the model, as far as is known.
    """
    found: dict[str, Matrix] = {}

    def note(ran: Ran) -> None:
        key, times = ran.name, 1
        while key in found:
            times += 1
            key = f"{ran.name}#{times}"
        found[key] = ran.matrix

    with watching(model, note):
        yield found


class Ran(NamedTuple):
    """One product of a matrix with values, as it ran in a forward."""

    name: str  # of the site in the model
    matrix: Matrix
    values: Tensor  # (B, H, L_in, W)
    grid: Grid | None  # of the tokens, where the call tells it; of a foreign module those behind its prefix
    masks: tuple[Tensor, ...]  # (B, L) and (B, L_in) bool, True = a real token, where there are any


@contextmanager
def watching(model: nn.Module, note: Callable[[Ran], None], sites: Iterable[Found] | None = None) -> Iterator[None]:
    """Inside of the context, ``note`` is told of every product of a matrix while it runs; see ``record``.

    Args:
        model: a model with sites.
        note: called between matrix and product; what it raises ends the forward.
        sites: of ``discover(model)``, the ones to watch; where absent those that ``record`` notes.
    """
    mixers, foreign = watched(model) if sites is None else _parted(model, sites)
    if not mixers and not foreign:
        raise ValueError(
            f"{type(model).__name__} contains no Mixer and has no module in which an adapter sees tokens mix"
        )
    slots: list[tuple[nn.Module, str, Any]] = []
    settings = [
        s for name, one in foreign.items() for s in one.adapter.settings(one.site, Place(name, one.module, model))
    ]
    with torch.compiler.set_stance("force_eager"), holding(settings):
        try:
            for name, mixer in mixers.items():
                before = mixer.__dict__.get("mix")  # a recording around this one, which notes as well
                notes = before.notes if isinstance(before, Recorded) else ()
                slots.append((mixer, "mix", before))
                # An attribute of the instance hides the method of the class.
                mixer.__dict__["mix"] = Recorded(mixer, (*notes, (note, name)))
            for name, one in foreign.items():
                before = one.module.__dict__.get("forward")
                notes = before.notes if isinstance(before, Watched) else ()
                slots.append((one.module, "forward", before))
                one.module.__dict__["forward"] = Watched(one, (*notes, (note, name)))
            yield
        finally:
            for module, attribute, before in slots:
                del module.__dict__[attribute]
                if before is not None:
                    module.__dict__[attribute] = before


def watched(model: nn.Module) -> tuple[dict[str, Mixer], dict[str, Found]]:
    """What is recorded in a model by name: mixers as they stand, and sites that are called as foreign modules are."""
    mixers, foreign = _parted(model, (one for one in discover(model) if not one.adapter.last))
    if mixers:
        foreign = {name: one for name, one in foreign.items() if one.site.kind not in ("depthwise_conv", "pooling")}
    return mixers, foreign


def _parted(model: nn.Module, sites: Iterable[Found]) -> tuple[dict[str, Mixer], dict[str, Found]]:
    """Mixers of ours, and sites that are called as foreign modules are, by name."""
    found = {one.site.name or type(model).__name__: one for one in sites}
    mixers = {name: one.module for name, one in found.items() if isinstance(one.module, Mixer)}
    return mixers, {name: one for name, one in found.items() if not isinstance(one.module, Mixer)}


def grids(model: nn.Module, found: Mapping[str, Matrix]) -> dict[str, Grid | None]:
    """The grid of the tokens of each matrix that ``record`` noted, where it is known."""
    mixers, foreign = watched(model)
    known: dict[str, Grid | None] = {name: mixer.grid for name, mixer in mixers.items()}
    for name, one in foreign.items():
        mixer = one.module.mixer if isinstance(one.module, Replacement) else None
        known[name] = mixer.grid if isinstance(mixer, Mixer) else one.site.grid
    own = {key: getattr(matrix, "grid", None) for key, matrix in found.items()}
    return {key: own[key] or known.get(key.partition("#")[0]) for key in found}


@checking_arguments()
def matrices(model: nn.Module, *inputs: Any, **options: Any) -> dict[str, Matrix]:
    """The matrix of every site in one forward ``model(*inputs, **options)``, by the site's name, in order of use.

    The forward runs in eval mode and without gradients; modes and methods are as before afterwards, errors included.
    Masks and grids go where the model takes them: ``matrices(model, x, mask=mask)``.

    Raises:
        ValueError: if no token mixes in the model as far as is known, or none of its sites ran.
    """
    with evaluating(model), torch.no_grad(), record(model) as found:
        model(*inputs, **options)
    if not found:
        names = [name for part in watched(model) for name in part]
        raise ValueError(f"no mixer of {type(model).__name__} ran: {', '.join(names)}")
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


Notes = tuple[tuple[Callable[[Ran], None], str], ...]  # who is told, and under which name


@dataclass(frozen=True)
class Recorded:
    """The way from tokens to tokens over the matrix, which is noted."""

    mixer: Mixer
    notes: Notes

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        matrix, values, rest = self.mixer.project(x, context)
        for note, name in self.notes:
            note(Ran(name, matrix, values, context.grid, () if context.mask is None else (context.mask,)))
        return self.mixer.merge(matrix.matmul(values), rest)


@dataclass(frozen=True)
class Watched(ByMatrix):
    """The matrix is noted."""

    notes: Notes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self.found.module
        try:
            told = self.found.attended(args, kwargs)
        except NotImplementedError:  # a convolution that has no square matrix
            return type(module).forward(module, *args, **kwargs)
        matrix = entries(told, module.training)
        grid, masks = self._call(args, kwargs)
        for note, name in self.notes:
            note(Ran(name, matrix, told.values, grid, masks))
        return told.answer(matrix)

    def _call(self, args: Any, kwargs: Any) -> tuple[Grid | None, tuple[Tensor, ...]]:
        try:
            call = self.found.adapter.read(self.found.site, args, kwargs)
        except ValueError:  # what is not to be read as tokens may still be a product of a matrix
            return None, ()
        return call.grid, tuple(mask for mask in (call.mask, call.memory_mask) if mask is not None)
