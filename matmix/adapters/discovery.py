"""Which modules of a model are sites, and what they are called with."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from matmix.adapters.base import Adapter, Attended, Call, entries, reference
from matmix.adapters.registry import adapter_named, adapters
from matmix.adapters.rematrixed import SLOT, Rematrixed, Structured
from matmix.adapters.replacement import Replacement
from matmix.adapters.site import CROSS, Place, Site
from matmix.cost import evaluating
from matmix.mixers.base import Mixer

TOKENS = 5  # of the probe
EDITS = "matmix_edits"  # of a module: what its matrix is changed by for a while, such as an ablation


class Found(NamedTuple):
    """A site of a model, the adapter that speaks for it, and the module that stands there."""

    site: Site
    adapter: Adapter
    module: nn.Module

    def attended(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        """The matrix of a call to what stands there now, its values, and what becomes of the product."""
        told = self._told(args, kwargs)
        for edit in self.module.__dict__.get(EDITS, ()):
            told = edit(self, told, args, kwargs)
        return told

    def _told(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        if isinstance(self.module, Replacement):
            return self.module.attended(args, kwargs)
        if isinstance(self.module, Rematrixed):
            structured: Any = self.module._modules[SLOT]
            return structured.attended(self.module, args, kwargs)
        return self.adapter.attended(self.site, self.module, args, kwargs)


@dataclass(frozen=True)
class ByMatrix:
    """The forward of a foreign module by way of its matrix: for a while an attribute of the instance, which hides the
    method of the class."""

    found: Found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        told = self.found.attended(args, kwargs)
        return told.answer(entries(told, self.found.module.training))

    @property
    def __signature__(self) -> inspect.Signature:
        module = self.found.module
        return inspect.signature(type(module).forward.__get__(module))


def discover(model: nn.Module) -> list[Found]:
    """The sites of a model in the order of its modules; of a site within another one the outer, if it is known.

    A module with several names is one site, with the others as ``tied``.
    """
    found: dict[int, Found] = {}
    names: dict[int, list[str]] = {}
    unknown: set[int] = set()
    outer = None
    for name, module in model.named_modules(remove_duplicate=False):
        if outer is not None and (name.startswith(f"{outer}.") or outer == ""):
            continue
        outer = None
        if id(module) in unknown:
            continue
        if id(module) not in found:
            match = recognise(Place(name, module, model))
            if match is None:
                unknown.add(id(module))
                continue
            found[id(module)] = match
        names.setdefault(id(module), []).append(name)
        if not found[id(module)].adapter.last:  # what nobody knows may hold what somebody does
            outer = name
    return [
        one._replace(site=dataclasses.replace(one.site, tied=tuple(names[key][1:]), inside=_inside(one, model)))
        for key, one in found.items()
    ]


def recognise(place: Place) -> Found | None:
    """The site that a module is, and its adapter; None: tokens do not mix there, or nobody knows how."""
    module = place.module
    if isinstance(module, Replacement):
        return Found(_replaced(module, place), module.adapter, module)
    if isinstance(module, Rematrixed):
        structured: Structured = module._modules[SLOT]  # type: ignore[assignment]
        site = dataclasses.replace(structured.site, name=place.name, module_class=_called(structured))
        return Found(site, structured.adapter, module)
    for adapter in [adapter_named("mixer")] if isinstance(module, Mixer) else adapters():
        known = adapter.site(place)
        if known is not None and (not adapter.probed or _agrees(adapter, known, place)):
            return Found(known, adapter, module)
    return None


def _replaced(module: Replacement, place: Place) -> Site:
    why = f"queries and keys went with the module before: {type(module.mixer).__name__} has its own"
    refused: dict[Any, str] = {**module.site.refused, "matrix": why}
    return dataclasses.replace(module.site, name=place.name, module_class=type(module.mixer).__name__, refused=refused)


def _called(structured: Structured) -> str:
    return f"{structured.site.module_class} with {structured}".split("(")[0]


def _inside(one: Found, model: nn.Module) -> tuple[str, ...]:
    """Names of parts of a foreign site that would be sites by themselves."""
    if one.adapter.last or isinstance(one.module, (Mixer, Replacement, Rematrixed)):
        return ()
    prefix = f"{one.site.name}." if one.site.name else ""
    return tuple(
        f"{prefix}{name}"
        for name, part in one.module.named_modules()
        if name and any(adapter.site(Place(f"{prefix}{name}", part, model)) for adapter in adapters())
    )


def _agrees(adapter: Adapter, site: Site, place: Place) -> bool:
    """Whether the module does what the adapter says, by a call with a few tokens.

    What has the parts of an attention need not be one: DaViT's channel attention has the same. The call is of the bare
    forward in eval mode and without gradients; hooks do not fire.
    """
    module = place.module
    like = reference(module, place.model)
    if like.device.type == "meta":
        return True
    length = (site.length or TOKENS) if site.options.get("fixed") else TOKENS
    dim = site.dim or 3  # of pooling it may not be known before a run
    waves = torch.arange(2 * length * dim, device=like.device, dtype=torch.float64)
    tokens = (waves * 12.9898).sin().view(2, length, dim).to(like.dtype)
    args, kwargs = adapter.sample(site, tokens)
    modes = [(part, part.training) for part in module.modules()]
    try:
        with torch.no_grad(), unhooked(module):
            module.eval()
            ran = first_tensor(module.forward(*args, **kwargs))
            found = adapter.attended(site, module, args, kwargs)
            told = first_tensor(found.answer(found.matrix))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError):
        return False
    finally:
        for part, training in modes:
            part.training = training
    close = 1e-3 if like.dtype in (torch.float32, torch.float64) else 5e-2
    if ran is None or told is None or ran.shape != told.shape:
        return False
    return bool((ran - told).abs().max() <= close * ran.abs().max().clamp(min=1e-6))


def first_tensor(out: Any) -> Tensor | None:
    while isinstance(out, (tuple, list)) and out:
        out = out[0]
    return out if isinstance(out, Tensor) else None


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@contextmanager
def unhooked(module: nn.Module) -> Iterator[None]:
    """Inside, no hook of the module or of its parts fires, and what stands in place of a forward for a while is not
    called: a recording notes nothing of it."""
    before = [(part, name, part.__dict__[name]) for part in module.modules() for name in _HOOKS]
    for part, name, _ in before:
        part.__dict__[name] = OrderedDict()
    for part in module.modules():
        if isinstance(part.__dict__.get("forward"), ByMatrix):
            before.append((part, "forward", part.__dict__.pop("forward")))
    try:
        yield
    finally:
        for part, name, hooks in before:
            part.__dict__[name] = hooks


def observe(model: nn.Module, found: list[Found], example: Any) -> list[Found]:
    """The sites with what one forward tells: lengths, grids, masks, causality, the number of calls.

    Args:
        model: is run once with the example, in eval mode and without gradients.
        found: of ``discover``.
        example: a tensor, a tuple of arguments, or a dict of keyword arguments.
    """
    calls: dict[int, list[Call]] = {id(one.module): [] for one in found}
    unread: dict[int, str] = {}
    handles = []
    for one in found:
        if one.adapter.last:
            continue  # nobody can read its calls

        def note(module: nn.Module, args: Any, kwargs: Any, one: Found = one) -> None:
            try:
                calls[id(module)].append(shapes(one.adapter.read(one.site, args, kwargs)))
            except (ValueError, TypeError) as error:  # no mixer can be called so
                unread[id(module)] = str(error).removeprefix(f"{one.site.name}: ")

        handles.append(one.module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        with evaluating(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            called(model, example, "example")
    finally:
        for handle in handles:
            handle.remove()
    sites = [_learned(one.site, calls[id(one.module)]) for one in found]
    return [
        one._replace(site=_refused(site, unread[id(one.module)]) if id(one.module) in unread else site)
        for one, site in zip(found, sites, strict=True)
    ]


def _refused(site: Site, why: str) -> Site:
    return dataclasses.replace(site, refused={"module": why, **site.refused})


def called(model: nn.Module, example: Any, word: str) -> Any:
    """What a model gives for a tensor, a tuple of arguments, or a mapping of them by name.

    Raises:
        ValueError: for arguments that its forward does not have, or lacks.
    """
    args, kwargs = arguments_of(example)
    try:
        return model(*args, **kwargs)
    except TypeError as error:
        try:
            inspect.signature(model.forward).bind(*args, **kwargs)
        except TypeError as unfit:
            given = f"{len(args)} by place and {', '.join(map(str, kwargs)) or 'none'} by name"
            raise ValueError(
                f"{word} must be arguments of {type(model).__name__}.forward, got {given}: {unfit}"
            ) from error
        raise


def arguments_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a model from a tensor, a tuple of them, or a mapping by name."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, (tuple, list)) else (example,)), {}


def shapes(call: Call) -> Call:
    """A call without its numbers, so that a run keeps no activation alive."""
    tensors: dict[str, Any] = {
        name: torch.empty(value.shape, dtype=value.dtype, device="meta")
        for name, value in call._asdict().items()
        if isinstance(value, Tensor)
    }
    return call._replace(**tensors, held=None, rest=None)


def _learned(site: Site, calls: list[Call]) -> Site:
    if not calls:
        return site
    lengths = tuple(call.tokens.shape[1] for call in calls)
    grids = {call.grid for call in calls}
    others = {None if call.memory is None else call.memory.shape[1] for call in calls}
    one = len(set(lengths)) == 1
    grid = grids.pop() if len(grids) == 1 else None
    refused = dict(site.refused)
    unfit = next((call.unfit for call in calls if call.unfit), None)
    if unfit is not None:
        refused.setdefault("module", f"in the example {unfit}")
    across = site.kind == "self_attention" and others != {None}
    if across:
        refused.setdefault("module", CROSS)
    fits = site.grid is not None and one and math.prod(site.grid) == lengths[0] - site.prefix
    return dataclasses.replace(
        site,
        kind="cross_attention" if across else site.kind,
        refused=refused,
        dim=site.dim or calls[0].tokens.shape[2],
        seen=lengths,
        length=lengths[0] if one else None,
        grid=grid or (site.grid if fits else None),
        memory=others.pop() if len(others) == 1 else None,
        padded=any(call.mask is not None or call.memory_mask is not None for call in calls),
        causal=site.causal or any(call.causal for call in calls),
    )
