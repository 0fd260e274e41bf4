"""Values of the wrong kind or size, for campaigns of bad settings."""

from __future__ import annotations

from typing import Any

WRONG: tuple[Any, ...] = (
    "x", "", "False", b"x", None, True, False, -1, 0, 1, 7, 2.5, -0.5, float("nan"), float("inf"), -float("inf"), 1e300,
    10**30, -(10**30), 10**400, 1j, (), (1,), (0.1, float("nan")), ("rows",), ((1, 2), (3,)), [], [1, 2], {}, {"a": 1},
    object(), object, "\ud800", "a" * 5000,
)  # fmt: skip
"""Some of them are right for some settings: then they are taken as they are."""
