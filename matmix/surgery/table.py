"""Tables of text."""

from __future__ import annotations

from collections.abc import Sequence


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str] = frozenset()) -> str:
    """Columns under titles, two spaces apart; those named in ``right`` end at their right edge. Empty ones go."""
    used = [at for at, title in enumerate(titles) if any(row[at] for row in rows)] or list(range(len(titles)))
    widths = {at: max(len(titles[at]), *(len(row[at]) for row in rows), 0) for at in used}
    lines = []
    for row in (titles, *rows):
        cells = [row[at].rjust(widths[at]) if titles[at] in right else row[at].ljust(widths[at]) for at in used]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: int | None) -> str:
    """A count with thousands apart; nothing for what is not known."""
    return "" if value is None else f"{value:,}"
