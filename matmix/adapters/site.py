"""Site: a place in a model where tokens mix, foreign or ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from matmix.mixers.base import Grid

Kind = Literal["self_attention", "cross_attention", "depthwise_conv", "pooling", "mixer", "map"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Level = Literal["module", "matrix"]
LEVELS: tuple[Level, ...] = get_args(Level)
Prefix = Literal["joined", "aside"]
CROSS = "a mixer mixes one sequence, cross attention joins two: use level='matrix'"


@dataclass(frozen=True)
class Site:
    """What is known of a place where tokens mix, before a run or after one (``seen`` says which).

    A site holds no module and no tensor: whatever stands in the place of the old module is built, called and saved by
    these words alone.
    """

    name: str  # as in model.named_modules()
    kind: Kind
    adapter: str  # the name of the calling convention
    dim: int  # width D of the tokens
    module_class: str  # of the module that stands there
    heads: int | None = None
    head_dim: int | None = None  # width W of the values of a head
    causal: bool | None = None  # no token may see a later one; None: unknown
    length: int | None = None  # tokens, prefix included; None: not known before a run, or it varies
    memory: int | None = None  # tokens of the other sequence, of cross attention
    grid: Grid | None = None  # of the tokens behind the prefix; None as for length
    prefix: int = 0  # class tokens and registers, which come first and have no place in the grid
    prefix_as: Prefix = "joined"  # joined: one sequence with the others; aside: the mixer does not see them
    padded: bool | None = None  # whether padding masks arrive; None: not known before a run
    seen: tuple[int, ...] = ()  # the lengths of a run, of each call
    tied: tuple[str, ...] = ()  # the other names of the same module
    parameters: tuple[str, ...] = ()  # names of the forward's parameters in order
    inside: tuple[str, ...] = ()  # what would be a site of its own, were it not a part of this one
    refused: Mapping[Level, str] = field(default_factory=dict)  # level -> why it is not possible
    note: str = ""  # what a reader should know of it
    options: Mapping[str, Any] = field(default_factory=dict)  # what else the adapter must know to read a call

    @property
    def calls(self) -> int | None:
        """Calls in one forward; None before a run. One module may serve all layers (ALBERT)."""
        return len(self.seen) or None

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the module."""
        return (self.name, *self.tied)

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name.

        Raises:
            TypeError: for more positional ones than the old forward has.
        """
        if len(args) > len(self.parameters):
            raise TypeError(f"{self.name}: {len(args)} positional arguments, takes {', '.join(self.parameters)}")
        # The oldest torch compiles no zip of unequal lengths.
        return {**dict(zip(self.parameters[: len(args)], args, strict=True)), **kwargs}

    def why_not(self, level: Level) -> str | None:
        """Why the site cannot be replaced at this level; None: it can."""
        return self.refused.get(level)


@dataclass(frozen=True)
class Place:
    """What an adapter looks at: a module and where it stands."""

    name: str
    module: nn.Module
    model: nn.Module

    def around(self) -> Iterator[nn.Module]:
        """The modules that hold it, from the nearest to the model."""
        parts = self.name.split(".") if self.name else []
        for end in range(len(parts) - 1, -1, -1):
            yield self.model.get_submodule(".".join(parts[:end]))

    def nearest(self, attribute: str, default: Any = None) -> Any:
        """An attribute of the nearest module around it that has one."""
        for module in self.around():
            if (found := getattr(module, attribute, None)) is not None:
                return found
        return default
