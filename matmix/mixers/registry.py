"""Names of mixers, and what builds them from spec strings (``matmix.spec``): one, or one a layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, TypeVar

from matmix.matrices.base import Matrix
from matmix.mixers.base import Grid, Mixer, Traits
from matmix.ranges import shown
from matmix.spec import Spec, hint, layer_specs, parse_spec, place, unknown_option

_MixerT = TypeVar("_MixerT", bound=type[Mixer])


@dataclass(frozen=True)
class MixerInfo:
    """One entry of the registry."""

    name: str
    cls: type[Mixer]
    matrix: str  # the class of the matrix, and per what: "Softmax per head"
    cost: str  # asymptotic, in L, D, H, N
    source: str  # owner/repo of the published code, or the paper where there is none
    paper: str  # arXiv number and equation
    smallest: dict[str, Any] = field(
        default_factory=dict
    )  # the smallest arguments that build it: enrols it in the laws
    variants: tuple[dict[str, Any], ...] = ()  # options that change the structure, under the laws as well

    @property
    def traits(self) -> Traits:
        """What the mixer promises with its default options."""
        return self.cls.traits


_REGISTRY: dict[str, MixerInfo] = {}
_PLUGINS_LOADED = False


def register(
    name: str,
    *,
    matrix: type[Matrix] | str,
    cost: str,
    source: str,
    paper: str = "",
    smallest: dict[str, Any] | None = None,
    variants: tuple[dict[str, Any], ...] = (),
) -> Callable[[_MixerT], _MixerT]:
    """Put a mixer class under a name, and with that under every law.

    Args:
        name: the name in specs, a Python identifier.
        matrix: class of the mixing matrix, or a phrase that names it.
        cost: asymptotic cost in the letters of the legend.
        source: ``owner/repo`` of the published code, or where the definition stands.
        paper: arXiv number and equation.
        smallest: arguments besides ``dim`` and ``grid`` that make the smallest sensible instance; its optional
            key ``"dim"`` states the smallest width (8 where absent).
        variants: options with which the laws of matmix's own tests run too, each beside the others of ``smallest``.
            An option that is a bool or one of several words needs no mention: each of its values is tried.

    Raises:
        ValueError: for no identifier, or a name that a class of another file, or another one of this file, has.
    """
    if not name.isidentifier():
        raise ValueError(f"name must be a Python identifier, got {name!r}")

    def enrol(cls: _MixerT) -> _MixerT:
        known = _REGISTRY.get(name)
        if known is not None and place(known.cls) != place(cls):
            raise ValueError(f"the mixer name {name!r} is taken by {known.cls.__module__}.{known.cls.__qualname__}")
        text = matrix if isinstance(matrix, str) else matrix.__name__
        _REGISTRY[name] = MixerInfo(name, cls, text, cost, source, paper, dict(smallest or {}), variants)
        return cls

    return enrol


def _load_plugins() -> None:
    global _PLUGINS_LOADED
    if not _PLUGINS_LOADED:
        _PLUGINS_LOADED = True
        for entry in entry_points(group="matmix.mixers"):
            entry.load()


def list_mixers() -> list[str]:
    """The names of all mixers, those of other packages (entry-point group ``matmix.mixers``) included."""
    _load_plugins()
    return sorted(_REGISTRY)


def mixer_info(name: str) -> MixerInfo:
    """What the registry knows about a mixer.

    Raises:
        ValueError: for an unknown name; the message lists the close ones, or all.
    """
    _load_plugins()
    if not isinstance(name, str) or name not in _REGISTRY:
        raise ValueError(f"unknown mixer {shown(name)}{hint(name, sorted(_REGISTRY))}")
    return _REGISTRY[name]


def _build(call: Spec, dim: int, grid: Grid | None) -> Mixer:
    info = mixer_info(call.name)
    signature = inspect.signature(info.cls)
    allowed = [name for name in signature.parameters if name not in ("dim", "grid")]
    positional = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    if call.args and not positional:
        raise ValueError(f"{call.name}: options are given by name, as in {call.name}({(allowed or ['option'])[0]}=...)")
    for name, _ in call.options:
        if name not in allowed:
            raise ValueError(unknown_option(call.name, name, allowed))
    options: dict[str, Any] = dict(call.options)
    if positional:
        return info.cls(dim, grid, *call.args, **options)
    return info.cls(dim, grid, **options)


def create_mixer(spec: str, dim: int, grid: Grid | int | None = None) -> Mixer:
    """Build one mixer from a spec.

    Args:
        spec: such as ``"hydra(expand=2)"``.
        dim: model width D.
        grid: ``(L,)`` or ``(rows, columns)``; needed by mixers of fixed length.

    Raises:
        ValueError: for an unknown mixer or option (the message lists what there is) or a spec of several mixers.
    """
    calls = parse_spec(spec)
    if len(calls) != 1:
        raise ValueError(
            f"spec {shown(spec)} names {len(calls)} mixers, where one must stand; create_mixers(spec, depth, ...) "
            "builds one a layer"
        )
    return _build(calls[0], dim, (grid,) if isinstance(grid, int) else grid)


def create_mixers(spec: str, depth: int, dim: int, grid: Grid | int | None = None) -> list[Mixer]:
    """Build the mixers of a stack: ``"ssd*3, attention"`` repeats with period four.

    Raises:
        ValueError: if the pattern's length does not divide ``depth``.
    """
    grid = (grid,) if isinstance(grid, int) else grid
    return [_build(call, dim, grid) for call in layer_specs(spec, depth)]


def markdown_table() -> str:
    """The registry as a Markdown table, for the README."""
    lines = [
        "| mixer | matrix | cost | causal | data dependent | length | mask | recurrent | packed | source |",
        "|---|" + "---|" * 9,
    ]
    for name in list_mixers():
        info = mixer_info(name)
        traits = info.traits
        paper = f"{info.source}; {info.paper}" if info.paper else info.source
        cells = [f"`{name}`", info.matrix, info.cost, *(_tick(t) for t in (traits.causal, traits.data_dependent))]
        cells += [traits.length, traits.mask or "", _tick(traits.recurrent), _tick(traits.packed), paper]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _tick(flag: bool) -> str:
    return "yes" if flag else ""
