"""ListOps from files: the release's `basic_{train,val,test}.tsv`, quoted or not, and others in its format.

    Source<TAB>Target
    ( ( ( [MAX 3 ) 4 ) ] )<TAB>4

Parentheses only say how the trees were built as pairs; they are dropped. Every row is held to the vocabulary, to being
one whole list, and to its value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from sequence.data.faults import BadData, bad, shown, table, text_lines
from sequence.data.listops import CLASSES, TOKENS, Malformed, value
from sequence.data.parallel import chunks, ordered_map

NAMES = {"train": "basic_train.tsv", "val": "basic_val.tsv", "test": "basic_test.tsv"}
FOLDER = "listops-1000"
ROWS = {"train": 96_000, "val": 2_000, "test": 2_000}
"""Of the release."""
HEADER = ["Source", "Target"]
CHUNK = 250
_IDS = {token: index for index, token in enumerate(TOKENS)} | {"]": TOKENS.index("X")}

Row = tuple[bytes, int]
_Raw = tuple[str, int, list[str]]


def read(file: IO[bytes], where: str) -> Iterator[Row | BadData]:
    """Tokens and value of every row, or what is wrong with it; decoded in several processes.

    Raises:
        BadData: for a file that cannot be read on, or has no header.
    """
    rows = table(text_lines(file, where), where, "\t")
    number, header = next(rows, (1, []))
    if header != HEADER:
        raise bad(where, number, f"the header is {shown(' '.join(header))}", "Source and Target, with a tab between")
    raw = ((where, line, row) for line, row in rows)
    for decoded in ordered_map(_decoded, chunks(raw, CHUNK)):
        yield from decoded


def _decoded(chunk: list[_Raw]) -> list[Row | BadData]:
    found: list[Row | BadData] = []
    for where, line, row in chunk:
        try:
            found.append(_row(where, line, row))
        except BadData as error:
            found.append(error)
    return found


def _row(where: str, line: int, row: list[str]) -> Row:
    if len(row) != 2:
        raise bad(where, line, f"{len(row)} columns", "2, Source and Target")
    source, target = row
    words = [word for word in source.split() if word not in ("(", ")")]
    try:
        tokens = bytes(_IDS[word] for word in words)
    except KeyError as error:
        raise bad(where, line, f"the token {shown(error.args[0])}", f"{' '.join(TOKENS)}, ] for X") from None
    if target not in TOKENS[:CLASSES]:
        raise bad(where, line, f"Target {shown(target)}", "a digit, 0 to 9")
    try:
        found = value(tokens)
    except Malformed as error:
        raise bad(where, line, str(error), "one whole list of at least one number") from None
    if found != int(target):
        raise bad(where, line, f"Target {target}", f"{found}, which is the value of its list")
    return tokens, int(target)
