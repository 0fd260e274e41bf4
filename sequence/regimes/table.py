"""The regimes at a glance, for the documentation; a test compares."""

from __future__ import annotations

from sequence.regimes import REGIMES, TASKS, regime


def markdown_table() -> str:
    """A row for each regime: steps x batch, and millions of parameters of the published model, by task."""
    lines = [f"| regime | {' | '.join(TASKS)} |", f"|---|{'---|' * len(TASKS)}"]
    return "\n".join(
        [*lines, *(f"| `{name}` | {' | '.join(_cell(name, task) for task in TASKS)} |" for name in REGIMES)]
    )


def _cell(name: str, task: str) -> str:
    try:
        found = regime(name, task)
    except ValueError:  # of a source that did not train on it
        return ""
    return f"{found.recipe.steps:,} x {found.recipe.batch_size}, {found.count.millions:.2f} M"
