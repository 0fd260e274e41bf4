"""What is said while runs are under way: one that fails (a closed pipe, a full disk) is dropped, and ends nothing."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_NOWHERE = io.TextIOWrapper(io.BytesIO(), "utf-8")
"""What answers for a stream that is closed: which encoding it has, say."""


class Steady:
    """A stream that drops what it cannot write; `error` is the first reason. All else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.lost = stream, False
        self.error: OSError | ValueError | None = None if stream is not None else OSError("the stream is closed")
        # A name that the encoding of the terminal lacks, or half a character of a damaged file, is shown as a code.
        if hasattr(stream, "reconfigure"):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return self.stream is not None and not getattr(self.stream, "closed", False) and bool(self.stream.isatty())

    def __getattr__(self, name: str) -> Any:
        return getattr(_NOWHERE if self.stream is None else self.stream, name)

    def _try(self, name: str, *args: str) -> None:
        if self.stream is None:
            self.lost = self.lost or bool(args)
            return
        try:
            getattr(self.stream, name)(*args)
        except (OSError, ValueError) as error:  # ValueError: it was closed by somebody
            self.error, self.lost = self.error or error, True


@contextmanager
def steady() -> Iterator[Steady]:
    """Within, stdout and stderr are `Steady`; the first is yielded. Inside of another one nothing changes."""
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, Steady) and isinstance(sys.stderr, Steady):
        yield sys.stdout
        return
    out, error = Steady(sys.stdout), Steady(sys.stderr)
    sys.stdout, sys.stderr = out, error
    try:
        yield out
        out.flush()
    finally:
        sys.stdout, sys.stderr = before


def fill_descriptors() -> None:
    """Open what the shell closed (`>&-`), on nothing: the next file would get its number, and prints of libraries."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def drop(stream: Any) -> None:
    """Send what a stream still holds nowhere, so that the end of the process does not fail on it."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def complain(text: str) -> None:
    """Say something on stderr, where that can be."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
