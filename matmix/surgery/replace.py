"""replace: another mixer, or another matrix, in chosen places of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from matmix.adapters import (
    Found,
    Level,
    Place,
    Prefix,
    Replacement,
    Site,
    discover,
    observe,
)
from matmix.adapters.base import reference
from matmix.adapters.rematrixed import SLOT
from matmix.adapters.site import CROSS
from matmix.arguments import checking_arguments
from matmix.mixers.base import Mixer
from matmix.mixers.registry import create_mixer, mixer_info
from matmix.ops.seed import fork_seed
from matmix.ranges import Seed
from matmix.spec import parse_spec
from matmix.surgery.average import write_means
from matmix.surgery.changes import Change
from matmix.surgery.optimizer import exchange
from matmix.surgery.projected import write_projected
from matmix.surgery.refuse import refuse_wrappers
from matmix.surgery.report import Report, Row
from matmix.surgery.select import Where, select
from matmix.surgery.structures import build


@checking_arguments(leave=("where", "exclude"))
def replace(
    model: nn.Module,
    spec: str | Mapping[str, str],
    where: Where = "all",
    *,
    level: Level = "module",
    init: Literal["fresh", "projected"] = "fresh",
    seed: Seed = 0,
    optimizer: Optimizer | None = None,
    example: Any = None,
    batches: Iterable[Any] | None = None,
    prefix: Prefix = "joined",
    keep_causal: bool = True,
    exclude: Where | None = None,
    layers: int | Iterable[int] | slice | None = None,
    dry_run: bool = False,
) -> Report:
    """Put another mixer, or another matrix, in chosen places of a model, in place.

    Everything is built and checked before anything changes. All other weights and buffers stay bit for bit; device,
    dtype, mode, hooks, modules that stand in several places are kept; what replaces frozen weights is frozen.

    Args:
        model: not compiled, not wrapped for distributed training.
        spec: of a mixer (``level="module"``: ``"hydra(expand=1)"``) or of a structure (``level="matrix"``:
            ``"low_rank(8)"``; see ``surgery.structures``); or a dict from pattern (see ``where``) to spec.
        where, exclude, layers: which sites, see ``surgery.select``.
        level: ``"module"``: the whole mixing module goes, its projections too; ``"matrix"``: queries, keys, values and
            output projection stay with their weights, only the matrix is another.
        init: ``"fresh"``, or ``"projected"``: a fixed or learned matrix begins at the nearest one of its class to the
            mean of the old matrix over ``batches`` (of what comes from tokens there is none: that is an error).
        seed: each replacement is built under (seed, name of the site), so arms of a study share all other weights.
        optimizer: gets the new parameters, and loses the old ones with their state. What has a learning rate or decay
            of its own (``matmix.optim_settings``, ``matmix.no_weight_decay``) comes into a group of its own, which is
            added where there is none: build schedulers of torch afterwards.
        example: an input of the model (a tensor, a tuple of arguments, a dict of them by name) for one forward that
            tells lengths, grids and masks where nothing else does.
        batches: inputs of the model in the same form, for ``mean_matrix`` and ``init="projected"``.
        prefix: class tokens and registers are ``"joined"`` to the sequence that the mixer sees, or stand ``"aside"``:
            the mixer sees the grid alone, and their mixing term is zero.
        keep_causal: refuse a mixer that sees later tokens where the old one did not. False lets it: in a model that
            does not predict what it sees. Where a call itself demands causality it is refused all the same.
        dry_run: the report of what would be done; nothing changes.

    Returns:
        A report, whose ``restore()`` brings the model back.

    Raises:
        ValueError: for a site that cannot be replaced so, with its name and the reason; nothing has changed then.
    """
    if not keep_causal and level == "matrix":
        raise ValueError("keep_causal=False is for level='module': a matrix is causal where the module is")
    refuse_wrappers(model)
    found = discover(model)
    if example is not None:
        found = observe(model, found, example)
    chosen = _chosen(found, spec, where, exclude, layers)
    if batches is not None and init == "fresh" and not any(_name(one) == "mean_matrix" for one in chosen.values()):
        raise ValueError("batches= is for the spec mean_matrix and for init='projected'")
    rows = [
        plan(model, _as_told(one, prefix, keep_causal), chosen[one.site.name], level, seed)
        for one in found
        if one.site.name in chosen
    ]
    if init == "projected":
        write_projected(model, rows, found, batches)
    elif any(_name(row.spec) == "mean_matrix" for row in rows):
        write_means(model, [row for row in rows if _name(row.spec) == "mean_matrix"], found, batches)
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    report = Report(model, rows, init=init, dry_run=dry_run, interface=shapes)
    if not dry_run:
        commit(report, optimizer)
    return report


def commit(report: Report, optimizer: Optimizer | None = None) -> None:
    """Make the changes of a report; an error in the middle takes back those that were made."""
    model = report.model
    before = {id(p) for p in model.parameters()}
    done: list[Row] = []
    try:
        for row in report.rows:
            done.append(row)
            row.change.apply()
        if optimizer is not None:
            left = {id(p) for p in model.parameters()}
            old = [p for row in report.rows for p in row.old.parameters() if id(p) in before - left]
            gone = [row.change.old for row in report.rows if row.level == "matrix" and row.change.old is not None]
            old += [p for module in gone for p in module.parameters() if id(p) in before - left]
            new = nn.ModuleList([row.part for row in report.rows]).parameters()
            report.exchange = exchange(optimizer, old, new, model)
    except BaseException:
        for row in reversed(done):
            row.change.revert()
        raise


def _as_told(found: Found, prefix: Prefix, keep_causal: bool) -> Found:
    causal = found.site.causal if keep_causal else False
    return found._replace(site=dataclasses.replace(found.site, prefix_as=prefix, causal=causal))


def _name(spec: str) -> str:
    return parse_spec(spec)[0].name


def _chosen(
    found: list[Found],
    spec: str | Mapping[str, str],
    where: Where,
    exclude: Where | None,
    layers: int | Iterable[int] | slice | None,
) -> dict[str, str]:
    """Site name -> spec."""
    sites = [one.site for one in found]
    selected = select(sites, where, exclude=exclude, layers=layers)
    if isinstance(spec, str):
        return {site.name: spec for site in selected}
    if not isinstance(spec, Mapping):
        raise TypeError(f"spec must be a string, or a dict from pattern to string, got {spec!r}")
    chosen: dict[str, str] = {}
    for pattern, one in spec.items():
        for site in select(selected, pattern):
            if site.name in chosen:
                raise ValueError(f"{site.name}: two patterns of the spec match it, {pattern!r} and another before it")
            chosen[site.name] = one
    return chosen


def plan(model: nn.Module, found: Found, spec: str, level: Level, seed: int) -> Row:
    """One site's replacement, built and checked; the model is as it was."""
    site, adapter, old = found
    why = site.why_not(level)
    if why:
        raise ValueError(f"{site.name or 'the model'}: cannot be replaced at level={level!r}: {why}")
    if not site.dim:
        raise ValueError(f"{site.name}: its width is not known before a run: give example=")
    if not site.name and level == "module":
        raise ValueError("the model is itself the site, nothing holds it: put it into a module, or build the mixer")
    like = reference(old, model)
    if level == "matrix":
        with fork_seed(seed, site.name):
            part: nn.Module = build(spec, site, adapter)
        new, owners, under = old, [(old, SLOT)], old._modules.get(SLOT)
    else:
        mixer = _mixer(site, spec, seed)
        part = mixer if site.adapter == "mixer" else Replacement(site, adapter, mixer, **adapter.kept(old))
        new, owners, under = part, _owners(model, site), old
    # What a replacement keeps of the old module is the model's own and stays as it is.
    fresh = part.mixer if isinstance(part, Replacement) else part
    fresh.to(like.device, like.dtype)
    fresh.train(old.training)
    part.training = old.training
    frozen = any(True for _ in old.parameters()) and not any(p.requires_grad for p in old.parameters())
    if frozen:
        part.requires_grad_(False)
    if level == "module":
        _share_hooks(old, new)
    settings = tuple(adapter.settings(site, Place(site.name, old, model)))
    change = Change(owners, under, part, settings)
    notes = ["frozen, as what it replaces"] if frozen and any(True for _ in part.parameters()) else []
    notes += [f"also {', '.join(site.tied)}"] if site.tied else []
    notes += [f"{site.prefix} prefix tokens {site.prefix_as}"] if site.prefix and level == "module" else []
    return Row(
        site=site,
        level=level,
        spec=spec,
        old_class=site.module_class,
        new_class=_new_class(spec, part, level),
        old=old,
        new=new,
        part=part,
        change=change,
        seed=seed,
        notes=tuple(notes),
        under=under if level == "matrix" else None,
    )


def _new_class(spec: str, part: nn.Module, level: Level) -> str:
    if level == "matrix":
        return spec
    return type(part.mixer if isinstance(part, Replacement) else part).__name__


def _mixer(site: Site, spec: str, seed: int) -> Mixer:
    """The mixer of a spec for a site.

    Raises:
        ValueError: if it does not fit, with the site's name.
    """
    if site.kind == "cross_attention":
        raise ValueError(f"{site.name}: {CROSS}")
    calls = parse_spec(spec)
    if len(calls) != 1:
        raise ValueError(f"{site.name}: spec {spec!r} names {len(calls)} mixers; give a dict from pattern to spec")
    traits = mixer_info(calls[0].name).traits
    aside = site.prefix if site.prefix_as == "aside" else 0
    length = None if site.length is None else site.length - aside
    grid = site.grid if site.prefix == aside and len(site.grid or ()) in traits.dims else None
    if grid is None and length is not None:
        grid = (length,)
    try:
        with fork_seed(seed, site.name):
            mixer = create_mixer(spec, site.dim, grid)
    except (ValueError, TypeError) as error:
        hint, sized = "", any(word in str(error) for word in ("grid", "length", "token"))
        if grid is None and sized:
            seen = ", ".join(map(str, dict.fromkeys(site.seen)))
            hint = f"; its length varies: {seen}" if seen else "; its length is not known before a run: give example="
        elif sized and site.prefix > aside:
            hint = f"; its {site.prefix} prefix tokens are joined to the grid: prefix='aside' keeps them out of it"
        raise ValueError(f"{site.name}: {error}{hint}") from error
    if site.causal and not mixer.traits.causal:
        raise ValueError(
            f"{site.name}: the site is causal, {spec!r} is not (keep_causal=False lets it see later tokens)"
        )
    if site.padded and mixer.traits.mask is None:
        raise ValueError(f"{site.name}: padding masks arrive there, and {spec!r} takes none")
    return mixer


def _owners(model: nn.Module, site: Site) -> list[tuple[nn.Module, str]]:
    """Every slot that holds the module."""
    owners: dict[tuple[int, str], tuple[nn.Module, str]] = {}
    for name in site.names:
        path, _, slot = name.rpartition(".")
        owner = model.get_submodule(path)
        owners[id(owner), slot] = (owner, slot)
    return list(owners.values())


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def _share_hooks(old: nn.Module, new: nn.Module) -> None:
    """The hooks of a module for what takes its place: the same dicts, so that their handles remove them from both."""
    for name in _HOOKS:
        new.__dict__[name] = old.__dict__[name]
