"""Adapter: one foreign calling convention, in the words of matmix.

An adapter says which modules it knows, how a call of theirs is read as tokens, how tokens are given back as they did,
and which matrix they multiply by. It holds no state: what it must know of a module stands in its site.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.adapters.site import Kind, Place, Site
from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.mixers.base import Grid


class Call(NamedTuple):
    """A call of a foreign mixer, read."""

    tokens: Tensor  # (B, L, D), prefix included
    grid: Grid | None = None  # of the tokens behind the prefix, where the call itself tells it
    mask: Tensor | None = None  # (B, L) bool, True = a real token
    memory: Tensor | None = None  # (B, S, D), the tokens of the other sequence
    memory_mask: Tensor | None = None  # (B, S) bool, True = a real token
    causal: bool = False  # no token may see a later one in this call
    unfit: str | None = None  # what the call demands and no mixer can do: a mask of pairs, values of other tokens
    held: Any = None  # what keeps the state of a recurrent mixer from call to call: seen, mix, note
    rest: Any = None  # what write needs


class Attended(NamedTuple):
    """What a foreign module multiplies by and what: ``answer(matrix)`` is what its forward returns."""

    matrix: Matrix  # (B or 1, H, L, L_in); of softmax attention a Softmax, with its scale, mask and bias
    values: Tensor  # (B, H, L_in, W)
    finish: Callable[[Tensor], Any]  # (B, H, L, W) -> all that the module returns
    dropout: float = 0.0  # of the entries of the matrix, in training
    positional: bool = False  # the bias of the Softmax is of positions alone: no mask is lost when it goes
    weights: Callable[[Any, Matrix], Any] | None = None  # where the matrix is returned too: what finish gave, with it

    def other(self, matrix: Matrix, values: Tensor) -> Attended:
        """The same with another matrix (the oldest torch compiles no ``_replace`` of a named tuple)."""
        return Attended(matrix, values, self.finish, self.dropout, self.positional, self.weights)

    def answer(self, matrix: Matrix) -> Any:
        """What the module returns with this matrix, the old one or another."""
        out = self.finish(matrix.matmul(self.values))
        return out if self.weights is None else self.weights(out, matrix)


def entries(found: Attended, training: bool) -> Matrix:
    """The matrix that runs: with dropout of its entries, drawn anew, it is a dense one."""
    if not (training and found.dropout):
        return found.matrix
    return Dense(F.dropout(found.matrix.to_dense(), found.dropout))


@dataclass(frozen=True)
class Setting:
    """An attribute of another module, and its value for as long as something of ours stands in the site."""

    owner: nn.Module
    attribute: str
    value: Any


class Adapter:
    """One calling convention; a subclass has a name and writes ``site``, ``read``, and what differs of the rest."""

    name: ClassVar[str]
    understood: ClassVar[frozenset[str]] = frozenset()  # the arguments of a call that ``read`` and ``attended`` use
    harmless: ClassVar[frozenset[str]] = frozenset()  # those that say nothing to a mixer, whatever their value
    last: ClassVar[bool] = False  # asked when no other adapter knows a module
    probed: ClassVar[bool] = True  # find asks by a small call whether ``attended`` is what the module does

    # ------------------------------------------------------------------ what an adapter writes

    def site(self, place: Place) -> Site | None:
        """What is known of a module before a run; None: it is not of this convention.

        By what the module can do (its parameters and its call), not by the name of its class: libraries rename theirs.
        """
        raise NotImplementedError

    def read(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """A call as tokens, grid and mask.

        Raises:
            ValueError: for an argument that it does not understand (see ``arguments``), with the site's name.
        """
        raise NotImplementedError

    def write(self, site: Site, call: Call, mixed: Tensor) -> Any:
        """Tokens ``(B, L, D)`` as what the old module returned: its layout, its tuple."""
        return mixed

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        """The matrix that the old module multiplies by in this call, its values, and what becomes of the product.

        It calls the module's own parts (``module.qkv(x)``), so hooks and wrappers of these act. Without dropout of
        the matrix, which it states instead.
        """
        raise NotImplementedError(f"the adapter {self.name!r} shows no matrix")

    def run(
        self, structured: Any, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """The forward of a module that multiplies by the matrix of ``structured``; ``forward`` is its own."""
        found = structured.attended(module, args, kwargs)
        return found.answer(entries(found, module.training))

    def sample(self, site: Site, tokens: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A plain call with these tokens ``(B, L, D)``, for counting and for the probe of ``find``."""
        return (tokens,), {}

    def settings(self, site: Site, place: Place) -> Iterable[Setting]:
        """Attributes of modules around the site that must be otherwise while something of ours stands there."""
        return ()

    def kept(self, module: nn.Module) -> dict[str, Any]:
        """Attributes of the old module for what stands in its place to have too: what code around it reads, and parts
        that are not of its mixing and stay, with their weights and names (``answer`` uses them)."""
        return {}

    def answer(self, part: Any, call: Call, mixed: Tensor) -> Any:
        """``write``, where it takes what was kept of the old module: ``part`` has it, and the site."""
        return self.write(part.site, call, mixed)

    # ------------------------------------------------------------------ what every adapter uses

    def known(self, place: Place, kind: Kind, dim: int, **more: Any) -> Site:
        """A site at this place, as far as name, class and call tell, and what else is known of it."""
        module = place.module
        told = {"parameters": parameters_of(module), **more}
        return Site(place.name, kind, self.name, dim, type(module).__name__, **told)

    def arguments(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, those left at None or False aside.

        Raises:
            TypeError: for more positional arguments than the old forward has.
            ValueError: for an argument that is neither understood nor harmless.
        """
        found = {}
        for name, value in site.named(args, kwargs).items():
            if value is None or value is False or name in self.harmless:
                continue
            if name not in self.understood:
                raise ValueError(
                    f"{site.name}: the adapter {self.name!r} does not understand the argument {name!r} "
                    f"(a {type(value).__name__}); it understands {', '.join(sorted(self.understood))}"
                )
            found[name] = value
        return found


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of a module's forward, in order; empty where Python cannot tell."""
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return ()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(name for name, parameter in signature.parameters.items() if parameter.kind not in kinds)


def parts_of(module: nn.Module) -> set[str]:
    """Names of the children, parameters and buffers that a module has of its own, the absent ones left out."""
    named = (module._modules, module._parameters, module._buffers)
    return {name for group in named for name, value in group.items() if value is not None}


def reference(module: nn.Module, *others: nn.Module) -> Tensor:
    """A floating tensor that says device and dtype: of the module, else of the first of the others that has one."""
    for one in (module, *others):
        for tensor in (*one.parameters(), *one.buffers()):
            if tensor.is_floating_point():
                return tensor
    return torch.zeros(())
