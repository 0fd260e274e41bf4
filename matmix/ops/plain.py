"""Whether a layer is nothing but its class and its weights.

Adapters, pruning, quantisation, offloading and tracing all work by calling a layer: they wrap it, hang hooks on it,
replace its ``forward`` or put its weights in place just before. Code that reads the weights instead and goes a way of
its own gives another result then, silently. So it asks here first, and calls the layer where the answer is no.
"""

from __future__ import annotations

from functools import cache
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

_Layer = TypeVar("_Layer", bound=nn.Module)
_CALL = nn.Module.__call__  # torch.fx puts its own in this place while it traces
# All hooks of all modules. PyTorch changes these dictionaries and never replaces them.
_EVERYWHERE = (
    _module._global_forward_pre_hooks,
    _module._global_forward_hooks,
    _module._global_backward_pre_hooks,
    _module._global_backward_hooks,
)
# What pruning, the old weight norm and sharding leave as a plain attribute in the place of a parameter, and what
# accelerate leaves beside a forward of its own.
_LEFT_BEHIND = ("weight", "bias", "_hf_hook", "_old_forward")
_KNOWN = ("torch", "timm", __name__.partition(".")[0])
_NUMBERS = (nn.Parameter, Tensor)  # torch.func puts tensors in the place of parameters


@cache
def _usual(kind: type[nn.Module]) -> tuple[frozenset[str], object]:
    """The names that no instance may hide, and the class's forward when it was first seen."""
    return frozenset(dir(kind)) | frozenset(_LEFT_BEHIND), kind.forward


def is_plain(layer: nn.Module, kind: type[_Layer]) -> TypeGuard[_Layer]:
    """Whether calling the layer is ``kind.forward`` on its tensors and nothing else, so that these may be read instead.

    That is: of this class exactly (no adapter around it, no parametrisation), without children, hooks of its own or
    hooks of all modules, not compiled by itself, with nothing on the instance that hides a method or a parameter, and
    with tensors that are numbers in memory (not meta, quantised, sparse or of a tensor class of their own).

    A compiler is told no: it sees into the call. It takes a tenth of the time of the call of a small layer.
    """
    return not layer.__dict__["_modules"] and is_plain_but_for_children(layer, kind)


def is_plain_but_for_children(layer: nn.Module, kind: type[_Layer]) -> TypeGuard[_Layer]:
    """``is_plain`` of a module that may have children, whatever they are."""
    if type(layer) is not kind or torch.compiler.is_compiling():
        return False
    names, forward = _usual(kind)  # type: ignore[arg-type]  # a class is hashable
    own = layer.__dict__
    return not (
        own["_forward_pre_hooks"]
        or own["_forward_hooks"]
        or own["_backward_pre_hooks"]
        or own["_backward_hooks"]
        or any(_EVERYWHERE)
        or not names.isdisjoint(own)
        or kind.forward is not forward
        or nn.Module.__call__ is not _CALL
        or not _in_memory(own["_parameters"])
        or not _in_memory(own["_buffers"])
    )


def is_unwatched(module: nn.Module) -> bool:
    """Whether a batch may go through a module in pieces: nobody sees them, and no result hangs on the whole batch.

    That is: outside of training, and the module and all below it are plain and of PyTorch, timm, this package or the
    package of the module itself. A hook or a wrapper that notes what it sees would see the last piece only, and
    statistics of a batch would be those of a piece. A few microseconds a module, so ask where a batch is large.
    """
    ours = {*_KNOWN, type(module).__module__.partition(".")[0]}
    return all(
        not each.training
        and type(each).__module__.partition(".")[0] in ours
        and is_plain_but_for_children(each, type(each))
        for each in module.modules()
    )


def _in_memory(tensors: dict[str, Tensor | None]) -> bool:
    for tensor in tensors.values():
        if tensor is not None and (
            type(tensor) not in _NUMBERS or tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided
        ):
            return False
    return True
