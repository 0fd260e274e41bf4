"""Report: what a replacement has changed, what it costs, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from matmix.adapters import Adapter, Level, Replacement, Site, adapter_named, put_matrix
from matmix.adapters.base import reference
from matmix.adapters.discovery import unhooked
from matmix.cost import count
from matmix.mixers.base import Mixer
from matmix.surgery.changes import Change
from matmix.surgery.dead import dead_parameters
from matmix.surgery.optimizer import Exchange
from matmix.surgery.table import number, table


@dataclass(frozen=True)
class Costs:
    """What one site costs for one sequence; None where its length is not known."""

    parameters: int
    dead: int | None  # of these, such as no gradient reaches
    macs: int | None
    state: int | None = None  # bytes of the state of one sequence, of a recurrent mixer


@dataclass
class Row:
    """One site of a report."""

    site: Site
    level: Level
    spec: str
    old_class: str
    new_class: str
    old: nn.Module
    new: nn.Module  # what stands there afterwards; at level "matrix" the old module with another matrix
    part: nn.Module  # what is new: the mixer in its wrapper, or what makes the matrix
    change: Change
    seed: int
    notes: tuple[str, ...] = ()
    under: nn.Module | None = None  # at level "matrix": what made the matrix before, if it was replaced already

    @property
    def adapter(self) -> Adapter:
        """The calling convention of the site."""
        return adapter_named(self.site.adapter)

    @cached_property
    def before(self) -> Costs:
        """The cost of what stood there, counted when first asked for."""
        return _costs(self.old if self.level == "module" else self._with(self.under), self)

    @cached_property
    def after(self) -> Costs:
        """The cost of what stands there now, counted when first asked for."""
        return _costs(self.new if self.level == "module" else self._with(self.part), self)

    def _with(self, structured: nn.Module | None) -> nn.Module:
        """A copy of the module with one or another matrix."""
        twin = copy.deepcopy(self.old)
        put_matrix(twin, None)
        put_matrix(twin, copy.deepcopy(structured))
        return twin


@dataclass
class Report:
    """What ``replace`` has done to a model, by site; printed as a table."""

    model: nn.Module
    rows: list[Row]
    exchange: Exchange | None = None
    init: str = "fresh"
    dry_run: bool = False
    interface: dict[str, list[int]] = field(default_factory=dict, repr=False)  # shapes of the model before

    @property
    def sites(self) -> list[Site]:
        """The sites that were replaced."""
        return [row.site for row in self.rows]

    def restore(self) -> None:
        """Bring the model back to what it was, bit for bit; a second time does nothing.

        What was put on top since stays until its own report is restored. Old modules follow the model to the device and
        the mode that it has now. The optimizer that was given gets its old parameters back with their state.

        Raises:
            ValueError: if something else stands in one of the places now; nothing is changed then.
        """
        done: list[Change] = []
        try:
            for row in reversed(self.rows):
                if row.change.done:
                    _follow(row)
                    row.change.revert()
                    done.append(row.change)
        except BaseException:
            for change in reversed(done):
                change.apply()
            raise
        if self.exchange is not None:
            self.exchange.undo(self.model)
            self.exchange = None

    def __str__(self) -> str:
        titles = ("site", "level", "before", "now", "parameters", "now ", "dead", "MACs", "now  ", "state bytes", "")
        cells = [_cells(row) for row in self.rows]
        text = table(titles, cells, frozenset({*titles[4:10]}))
        head = "would replace" if self.dry_run else "replaced"
        restored = bool(self.rows) and not self.dry_run and not any(row.change.done for row in self.rows)
        return f"{head} {len(self.rows)} site{'s' * (len(self.rows) != 1)}{' (restored)' * restored}\n{text}"

    def __repr__(self) -> str:
        return f"Report({', '.join(f'{row.site.name}: {row.old_class} -> {row.new_class}' for row in self.rows)})"


def _cells(row: Row) -> Sequence[str]:
    before, after = row.before, row.after
    return (
        row.site.name,
        row.level,
        row.old_class,
        row.new_class,
        number(before.parameters),
        number(after.parameters),
        number(after.dead),
        number(before.macs),
        number(after.macs),
        number(after.state),
        "; ".join(row.notes),
    )


def _follow(row: Row) -> None:
    """Old modules were away while the model moved: to its device and its mode now."""
    if row.level == "matrix":
        return  # it was there all the time
    now, then = reference(row.new), reference(row.old)
    if any(True for _ in row.new.parameters()) and now.device != then.device:
        row.old.to(now.device)
    if row.old.training != row.new.training:
        row.old.train(row.new.training)


def _costs(module: nn.Module, row: Row) -> Costs:
    """Parameters, multiply-accumulates and dead parameters, by a call with one sequence of the site's length."""
    parameters = sum(p.numel() for p in module.parameters())
    mixer = module.mixer if isinstance(module, Replacement) else module
    state = None
    if isinstance(mixer, Mixer) and mixer.traits.recurrent:
        leaves = pytree.tree_leaves(mixer.init_state(1))
        state = sum(t.numel() * t.element_size() for t in leaves if isinstance(t, Tensor))
    site = row.site
    like = reference(module, row.old, row.part)
    if site.length is None or like.device.type == "meta":
        return Costs(parameters, None, None, state)
    tokens = torch.randn(1, site.length, site.dim, generator=torch.Generator().manual_seed(0))
    args, kwargs = row.adapter.sample(site, tokens.to(like.device, like.dtype))
    try:
        with unhooked(module):
            macs = count(module, *args, **kwargs).macs
            return Costs(parameters, dead_parameters(module, lambda twin: twin(*args, **kwargs)), macs, state)
    except NotImplementedError:
        return Costs(parameters, None, None, state)
