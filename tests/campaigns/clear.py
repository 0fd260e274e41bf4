"""What a clear error is: the one definition that all campaigns of bad calls count by.

An error is clear where whoever made the call can mend it by the message alone: we raised it on purpose, and it says
which argument, what was given, and what is allowed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from matmix.experiments.config import RunError

FAMILY = (ValueError, TypeError, NotImplementedError, FileNotFoundError, RunError)
"""Kinds of errors that say "not like this" (LengthError is a ValueError); subclasses of these that Python or PyTorch
raise by themselves are told apart by the frame that raised them."""
OURS = ("matmix", "vision", "sequence")
LINES = 8
CHARACTERS = 3000
ALLOWED = re.compile(
    r"must|need|takes?\b|expect|known:|it knows|did you mean|has no\b|is called|there is none|at least|at most|one of\b"
    r"|allowed|only|no more than|does not divide|adds? up|given by name|not Python call syntax|is not recurrent"
    r"|missing:|unexpected:|left over:|wrong shape:|of the wrong shape|is no\b|loads no|call resize_|convert one"
    r"|supported formats|where ours"
    r"|says what there is|of the form|those end in|first: matmix|there are\b|\bgive |\[Errno \d+\] ",
    re.IGNORECASE,
)
"""Words by which a message says what is allowed, or what of it is not there."""


def raised_by_us(error: BaseException) -> bool:
    """Whether the innermost frame of the traceback is code of this project."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__")).split(".")[0] in OURS


def shown(value: Any) -> set[str]:
    """The ways in which a message may show a value: its text; of a tensor its shape, dtype or device; of a long or
    compound value its beginning or its type."""
    kind = type(value).__name__
    if isinstance(value, torch.Tensor) and value.is_nested:
        return {"nested", str(value.dtype)}
    if isinstance(value, torch.Tensor):
        return {str(tuple(value.shape)), str(value.dtype), str(value.device), str(value.layout)} | (
            {repr(value)} if not value.dim() and not value.is_meta else set()
        )
    if isinstance(value, np.ndarray):
        return {kind, str(value.shape), str(value.dtype)}
    try:
        texts = {repr(value), str(value)}
    except Exception:  # a text that is no text: a number of too many digits
        return {kind}
    if isinstance(value, bool | int | float | str) or value is None:
        return {text[:40] for text in texts if text} | ({kind} if value is None or value == "" else set())
    return {text[:40] for text in texts if text} | {kind}


def unclear_text(text: str, names: Iterable[str] = (), values: Iterable[Any] = ()) -> str:
    """Why a message is not clear, "" where it is.

    Args:
        text: what was said.
        names: words for the argument, of which the message must have one; none: it is not asked for.
        values: what was given; the message must show one of these (``shown``); none: it is not asked for.
    """
    names, values = list(names), list(values)
    if not text.strip():
        return "no message"
    if "Traceback (most recent call last)" in text:
        return "a traceback"
    if text.count("\n") >= LINES or len(text) > CHARACTERS:
        return f"{text.count(chr(10)) + 1} lines, {len(text)} characters"
    if names and not any(re.search(rf"(?<![A-Za-z]){re.escape(name)}(?![A-Za-z])", text) for name in names):
        return f"does not name {' or '.join(names)}"
    if values and not any(way in text for value in values for way in shown(value)):
        return "does not show the value"
    if not ALLOWED.search(text):
        return "does not say what is allowed"
    return ""


def unclear(error: BaseException, names: Iterable[str] = (), values: Iterable[Any] = ()) -> str:
    """Why an error is not clear, "" where it is. Arguments as of ``unclear_text``."""
    if not isinstance(error, FAMILY):
        return f"a {type(error).__name__}"
    if not raised_by_us(error):
        return "raised outside of the project"
    return unclear_text(str(error), names, values)


@dataclass
class Tally:
    """The figures of a campaign: calls that were right, refused clearly, and the others by cause."""

    right: int = 0
    clear: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def refused(self, error: BaseException, call: str, names: Iterable[str] = (), values: Iterable[Any] = ()) -> None:
        """Count a call by the error that it raised."""
        why = unclear(error, names, values)
        if why:
            trace, place = error.__traceback__, ""
            while trace is not None:  # the last place of ours that it went through is where a check is missing
                module = str(trace.tb_frame.f_globals.get("__name__"))
                if module.split(".")[0] in OURS:
                    place = f"{module}:{trace.tb_lineno}"
                trace = trace.tb_next
            self.wrong(f"{why} at {place}", f"{call}: {type(error).__name__}: {str(error)[:300]}")
        else:
            self.clear += 1

    def wrong(self, cause: str, example: str) -> None:
        """Count a call that was answered by something neither right nor clear."""
        self.causes[cause] += 1
        self.examples.setdefault(cause, example)

    @property
    def unclear(self) -> int:
        return sum(self.causes.values())

    @property
    def calls(self) -> int:
        return self.right + self.clear + self.unclear

    def __str__(self) -> str:
        lines = [f"{self.calls:,} calls: {self.right:,} right, {self.clear:,} refused clearly, {self.unclear:,} not"]
        lines += [f"{count:>6} {cause}\n       {self.examples[cause]}" for cause, count in self.causes.most_common()]
        return "\n".join(lines)
