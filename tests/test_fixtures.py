"""Every published case that is kept under tests/reference is held against our code by some test.

Read off the test files without running them: a case counts as used where its name stands as a whole, where an f-string
fits it and every part that fills a hole stands in the same file, or where a pattern of file names fits it.
"""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

TESTS = Path(__file__).parent
CASES = sorted(str(f.relative_to(TESTS / "reference").with_suffix("")) for f in TESTS.glob("reference/*/*.json"))


def constants_and_patterns(source: str) -> tuple[set[str], list[re.Pattern[str]]]:
    """The strings and numbers of a file, and its f-strings with a group for every hole."""
    constants, patterns = set(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int):
            constants.add(str(node.value))
        elif isinstance(node, ast.JoinedStr):
            parts = [re.escape(str(p.value)) if isinstance(p, ast.Constant) else "(.+?)" for p in node.values]
            patterns.append(re.compile("".join(parts)))
    return constants, patterns


def used(case: str, constants: set[str], patterns: list[re.Pattern[str]]) -> bool:
    name = case.rpartition("/")[2]  # files whose cases are all in one folder name them without it
    if {case, name} & constants or any(
        c != "*.json" and c.endswith(".json") and fnmatch(f"{name}.json", c) for c in constants
    ):
        return True
    matches = (pattern.fullmatch(text) for pattern in patterns for text in (case, name))
    return any(match and set(match.groups()) <= constants for match in matches)


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
    assert not used("sequence/alone_8", *constants_and_patterns('load(f"alone_{size}"); 7'))
    assert used("vision/pool_7x9", *found)
    assert not used("vision/pool_7x8", *found)
    assert not used("vision/part", *found)
    assert used("sequence/data_one", *found)
    assert not used("sequence/date", *constants_and_patterns('glob("*.json")'))
