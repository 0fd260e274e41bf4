"""Rematrixed: a foreign module that keeps its projections and multiplies by another matrix.

As in ``torch.nn.utils.parametrize`` the module gets a class of its own, a subclass of its old one: its parts, their
names, its hooks, all references to it and what libraries find out by ``isinstance`` stay.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from matmix.adapters.base import Adapter, Attended
from matmix.adapters.site import Site
from matmix.matrices.base import Matrix

SLOT = "matmix_matrix"  # the name of the child that makes the matrix


class Structured(nn.Module):
    """Makes the matrix of a site, in place of the old one. A subclass writes ``forward``."""

    site: Site
    adapter: Adapter

    def forward(self, found: Attended) -> tuple[Matrix, Tensor]:
        """The other matrix, and the values for it, from what the module would do by itself."""
        raise NotImplementedError

    def attended(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        """As the adapter tells of the old module, with the other matrix."""
        found = self.adapter.attended(self.site, module, args, kwargs)
        matrix, values = self(found)  # called as a module, so that hooks act and offloaded weights are in place
        return found.other(matrix, values)


class Rematrixed:
    """Mixed into the class of a module whose child ``matmix_matrix`` makes its matrix."""


_MADE: dict[type[nn.Module], type[nn.Module]] = {}


def rematrixed(cls: Any) -> type[nn.Module]:
    """The subclass that multiplies by the matrix of its child ``matmix_matrix``; one a class."""
    if cls in _MADE:
        return _MADE[cls]

    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        structured: Structured = self._modules[SLOT]  # type: ignore[assignment]
        own = functools.partial(cls.forward, self)
        return structured.adapter.run(structured, self, own, args, kwargs)

    def reduce(self: nn.Module, protocol: Any = None) -> Any:
        return _again, (cls,), self.__dict__

    body = {"forward": forward, "__reduce_ex__": reduce, "__module__": cls.__module__, "__doc__": cls.__doc__}
    _MADE[cls] = type(f"Rematrixed{cls.__name__}", (Rematrixed, cls), body)
    return _MADE[cls]


def _again(cls: type[nn.Module]) -> nn.Module:
    made = rematrixed(cls)
    return made.__new__(made)


def put_matrix(module: nn.Module, structured: nn.Module | None) -> None:
    """Give a module the child that makes its matrix; None: take it out, and the module is what it was."""
    if structured is None:
        module._modules.pop(SLOT, None)
        if isinstance(module, Rematrixed):
            module.__class__ = type(module).__mro__[2]
        return
    if not isinstance(module, Rematrixed):
        module.__class__ = rematrixed(type(module))
    module._modules[SLOT] = structured
