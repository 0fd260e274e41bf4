"""Every published case that is kept under tests/reference is held against our code by some test.

Read off the test files without running them: a case counts as used where its name stands as a whole, where an f-string
fits it and every part that fills a hole stands in the same file, or where a pattern of file names fits it.
"""

from __future__ import annotations

import ast
from fnmatch import fnmatch
from pathlib import Path

TESTS = Path(__file__).parent
CASES = sorted(str(f.relative_to(TESTS / "reference").with_suffix("")) for f in TESTS.glob("reference/*/*.json"))


Pattern = tuple[str | None, ...]
"""An f-string: its texts, None for every hole."""


def constants_and_patterns(source: str) -> tuple[set[str], list[Pattern]]:
    """The strings and numbers of a file, and its f-strings."""
    constants, patterns = set(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int):
            constants.add(str(node.value))
        elif isinstance(node, ast.JoinedStr):
            patterns.append(tuple(str(p.value) if isinstance(p, ast.Constant) else None for p in node.values))
    return constants, patterns


def fits(pattern: Pattern, text: str, constants: set[str]) -> bool:
    """Whether a text is an f-string with constants in its holes."""
    if not pattern:
        return not text
    first, rest = pattern[0], pattern[1:]
    if first is not None:
        return text.startswith(first) and fits(rest, text.removeprefix(first), constants)
    return any(text[:n] in constants and fits(rest, text[n:], constants) for n in range(1, len(text) + 1))


def used(case: str, constants: set[str], patterns: list[Pattern]) -> bool:
    name = case.rpartition("/")[2]  # files whose cases are all in one folder name them without it
    if {case, name} & constants or any(
        c != "*.json" and c.endswith(".json") and fnmatch(f"{name}.json", c) for c in constants
    ):
        return True
    return any(fits(pattern, text, constants) for pattern in patterns for text in (case, name))


def test_every_case_is_used() -> None:
    files = [f for f in TESTS.rglob("test_*.py") if f.name != Path(__file__).name]
    read = [constants_and_patterns(f.read_text()) for f in files]
    unused = [case for case in CASES if not any(used(case, *found) for found in read)]
    assert CASES and not unused, f"no test uses {', '.join(unused)}"


def test_an_unused_case_is_found() -> None:
    found = constants_and_patterns(
        'load(f"vision/{kind}_{size}x{size}"); load("vision/whole"); kind = "pool"; 7; 9; glob("data_*.json")'
    )
    assert used("vision/whole", *found)
    assert used("sequence/alone_7", *constants_and_patterns('load(f"alone_{size}"); 7'))
    assert used("sequence/s_long_name_7", *constants_and_patterns('f"{kind}_{size}"; "s_long_name"; 7'))
    assert not used("sequence/alone_8", *constants_and_patterns('load(f"alone_{size}"); 7'))
    assert used("vision/pool_7x9", *found)
    assert not used("vision/pool_7x8", *found)
    assert not used("vision/part", *found)
    assert used("sequence/data_one", *found)
    assert not used("sequence/date", *constants_and_patterns('glob("*.json")'))
