"""Damage to words and texts, for campaigns of bad command lines, files and specs, drawn from a seed."""

from __future__ import annotations

import random

ODD = (
    "", " ", "x", "-1", "0", "1", "7", "2.5", "nan", "inf", "-inf", "1e400", "9" * 30, "None", "True", "false", "-",
    "=", "--x", "--recipe.lr", "\ud800", "ü", "漢", "a" * 300, "a" * 5000, "a/b", "..x", "{}", "[1]", "(", ")", "$x^{$",
    "[/red]",
    "\n", "*", "%s", "{0}", "'", '"', ",", "1,2", "x=1", "hydra", "identity", "digits", "~nobody", "None.None", ":",
    "a:b",
)  # fmt: skip
"""Words that are hardly ever right; a shell can give each of them."""
MARKS = "()[]{}=*,.:'\"#\\-+ \n\tx0é漢\ud800"


def bent_text(draw: random.Random, text: str) -> str:
    """A text changed in one place: a letter more, less or other, a piece twice, away or moved."""
    at = draw.randrange(len(text) + 1)
    end = min(len(text), at + 1 + draw.randrange(8))
    return draw.choice(
        (
            text[:at] + draw.choice(MARKS) + text[at:],
            text[:at] + text[at + 1 :],
            text[:at] + draw.choice(MARKS) + text[at + 1 :],
            text[:end] + text[at:],
            text[:at] + text[end:],
            text[at:] + text[:at],
            text[:at],
            text.swapcase(),
        )
    )
