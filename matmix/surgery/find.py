"""find: the places of a model where tokens mix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

from torch import nn

from matmix.adapters import LEVELS, Site, discover, observe
from matmix.arguments import checking_arguments
from matmix.surgery.select import Where, select
from matmix.surgery.table import table

TITLES = ("site", "kind", "module", "adapter", "D", "heads", "causal", "tokens", "prefix", "calls", "levels", "notes")


class Sites(Sequence[Site]):
    """The sites of a model in the order of its modules; printed as a table."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = tuple(sites)

    @overload
    def __getitem__(self, at: int) -> Site: ...
    @overload
    def __getitem__(self, at: slice) -> Sites: ...
    def __getitem__(self, at: int | slice) -> Site | Sites:
        return Sites(self._sites[at]) if isinstance(at, slice) else self._sites[at]

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def __str__(self) -> str:
        if not self._sites:
            return "no site: no module in which tokens mix is known to an adapter"
        reasons: dict[str, int] = {}  # why not, each said once under the table
        rows = [_row(site, reasons) for site in self._sites]
        lines = [table(TITLES, rows, frozenset({"D", "heads", "calls"}))]
        return "\n".join(lines + [f"[{at}] not at level {why}" for why, at in reasons.items()])

    __repr__ = __str__


@checking_arguments(leave=("where",))
def find(model: nn.Module, where: Where = "all", *, example: Any = None, **narrow: Any) -> Sites:
    """Every place of a model where tokens mix, in the order of its modules.

    Args:
        model: any module; nothing in it is changed. Each foreign site is called once with a few tokens, to see that it
            does what its adapter says.
        where: which ones, see ``select``; no match is an error that names the close ones.
        example: an input, for what only a run can tell: lengths, grids, masks, the number of calls. A tensor, a tuple
            of arguments or a dict of them by name.
        narrow: ``exclude=`` and ``layers=`` of ``select``.

    Returns:
        The sites; printed, a table.
    """
    found = discover(model)
    if example is not None:
        found = observe(model, found, example)
    sites = [one.site for one in found]
    return Sites(sites if where == "all" and not narrow else select(sites, where, **narrow))


def _row(site: Site, reasons: dict[str, int]) -> tuple[str, ...]:
    def known(value: bool | None) -> str:
        return "?" if value is None else "yes" if value else "no"

    size = str(site.length) if site.length else "?"
    if site.grid is not None and len(site.grid) == 2:
        size = " x ".join(map(str, site.grid)) + (f" + {site.prefix}" if site.prefix else "")
    if site.seen and site.length is None:
        size = ", ".join(map(str, dict.fromkeys(site.seen)))
    marks = []
    for why in dict.fromkeys(site.refused.values()):
        text = f"{' and '.join(level for level in LEVELS if site.why_not(level) == why)}: {why}"
        marks.append(f"[{reasons.setdefault(text, len(reasons) + 1)}]")
    notes = [f"also {', '.join(site.tied)}"] if site.tied else []
    notes += [f"contains {', '.join(site.inside)}"] if site.inside else []
    notes += [site.note] if site.note else []
    return (
        site.name or "(the model)",
        site.kind,
        site.module_class,
        site.adapter,
        str(site.dim or "?"),
        str(site.heads or ""),
        known(site.causal),
        size,
        f"{site.prefix} {site.prefix_as}" if site.prefix else "",
        str(site.calls or ""),
        ", ".join(level for level in LEVELS if not site.why_not(level)) or "none",
        " ".join([*marks, "; ".join(notes)]),
    )
