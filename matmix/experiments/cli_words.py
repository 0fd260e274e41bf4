"""The words of a command line as objects. Wrong ones are a ValueError of one line, whichever parser finds them."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

KINDS = {
    r"invalid literal for int\(\) with base 10: ": "a whole number",
    r"could not convert string to float: ": "a number",
    r"invalid int value: ": "a whole number",
}
"""How parsers say that a word is of another kind, and which kind is wanted."""


class Parser(argparse.ArgumentParser):
    """Whose errors are raised instead of printed."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(_in_words(message, self.prog))


def read(options: Callable[..., Any], words: Sequence[str], *, prog: str, about: str | None, **more: Any) -> Any:
    """What a function or dataclass makes of the words behind a command.

    Args:
        options: its arguments, or fields, are the options.
        more: further arguments of `tyro.cli`.

    Raises:
        ValueError: for a word that is no option, or no value of its option; and what `options` itself raises.
    """
    import tyro

    said, wrong = io.StringIO(), False
    helps = {"-h", "--help"} & set(words)
    try:
        # tyro draws a box around what it has to say, and leaves; a narrow one would break long words in two.
        with contextlib.redirect_stderr(said), contextlib.nullcontext() if helps else _wide():
            return tyro.cli(options, prog=prog, description=about, args=list(words), **more)
    except SystemExit as end:
        wrong = end.code not in (0, None)
        if not wrong:
            raise
    finally:
        if not wrong:
            sys.stderr.write(said.getvalue())
    raise ValueError(_in_words(_unboxed(said.getvalue()), prog))


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """Within, the terminal is as wide as any text."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _unboxed(text: str) -> str:
    """What stands in a box behind its title, up to the next rule. Without Unicode a box has rules but no frame."""
    lines = [line.strip("│ ") for line in text.splitlines()]
    rules = [number for number, line in enumerate(lines) if re.match("[╭─╰-]{3}|╭", line)]
    first, end = [*rules, len(lines), len(lines)][:2]
    said = " ".join(filter(None, lines[first + 1 : end] if rules else lines))
    meant = list(dict.fromkeys(line.split()[0] for line in lines[end:] if line.startswith("--") and " " in line))
    return f"{said.rstrip('.')}; did you mean {', '.join(meant)}?" if meant and "Unrecognized" in said else said


def _in_words(text: str, prog: str) -> str:
    text = re.sub(r"Missing value for argument '(\w+)'\. Expected .*", r"\1 must be given", text)
    found = re.match(r"(?:Error parsing|argument) (\S+?):? (?:\(.*?\))?:? ?(.*)", text, re.DOTALL)
    name, message = found.groups() if found else ("", text)
    for said, kind in KINDS.items():
        if re.match(said, message):
            return f"{name} must be {kind}, got {re.sub(said, '', message, count=1)}"
    if found and re.match(r"[\w.]+(: \w+)? must ", message):  # a setting says its own name
        return message
    return f"{text.rstrip('.')}; `{prog} --help` says what there is"
