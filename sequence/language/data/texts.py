"""Texts by split, from files or from Hugging Face's data sets, whole or as a stream.

===========================  =====================================================================================
a text file or a pattern     each line that is not empty is a text; cut into train, validation and test (90, 5, 5 %)
a folder with text files     one for each split, as `sequence.data.corpus` finds them
a folder of `datasets`       one that it saved, or with json, jsonl, csv or parquet files named after their splits
`owner/name`                 a data set of the Hugging Face hub
===========================  =====================================================================================

The last two may be read as a stream, which holds a few batches at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from matmix.arguments import checking_arguments
from matmix.ranges import Place
from sequence.data.cache import source_key
from sequence.data.corpus import SPLITS, read, sources
from sequence.data.faults import BadData, apart, bad, decoded, shown

TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Endings of files that `datasets` reads, and what it calls them."""


class Texts(NamedTuple):
    """The texts of each split, read anew at every call, and what stands for all of them in a cache."""

    splits: dict[str, Callable[[], Iterator[str]]]
    key: dict[str, Any]
    names: dict[str, str]
    """Of splits, for errors and tables."""


@checking_arguments()
def texts(
    data: Place, *, config: str = "", column: str = "text", streaming: bool = False, held_out: int = 1000
) -> Texts:
    """The texts of a data set.

    Args:
        data: see above.
        config: of a data set of the hub, "en" of "allenai/c4".
        column: of a table.
        streaming: read tables as they come, nothing is prepared or kept.
        held_out: texts at the beginning of the training ones that are for validation, and as many for the test, where a
            table has no such split.

    Raises:
        BadData: where there is nothing of that name, or it has no such column; names the file, and what is allowed.
    """
    if not data:
        raise ValueError("data: which text? --data FILE, FOLDER, or the name of a data set of the Hugging Face hub")
    root = Path(data).expanduser()
    on_hub = re.fullmatch(r"[\w.\-]+/[\w.\-]+", data) and not root.exists() and not Path(root.parts[0]).exists()
    if on_hub or (root.is_dir() and _is_table(root)):
        return _tables(root, data, config, column, streaming, held_out)
    if streaming:
        raise ValueError(f"streaming: text files such as {data} are read whole; tables and the hub may be streamed")
    found = read(root, whole_characters=True, whole_lines=True)
    splits = {split: _lines(name, text) for split, (name, text) in found.items()}
    files = source_key(*(file for file in sources(root) if file.is_file()))
    return Texts(splits, {"files": files}, {split: name for split, (name, _) in found.items()})


def _lines(name: str, text: bytes) -> Callable[[], Iterator[str]]:
    def lines() -> Iterator[str]:
        for number, line in enumerate(text.split(b"\n"), 1):
            if words := decoded(line, name, number).strip():
                yield words

    return lines


def _is_table(root: Path) -> bool:
    saved = (root / "dataset_dict.json").is_file() or (root / "dataset_info.json").is_file()
    return saved or any(file.suffix in TABLES for file in root.iterdir())


def _tables(root: Path, data: str, config: str, column: str, streaming: bool, held_out: int) -> Texts:
    found = _opened(root, data, config, streaming)
    named = {split: next((name for name in names if name in found), "") for split, names in SPLITS.items()}
    if not named["train"]:
        raise bad(data, 0, f"its splits are {shown(', '.join(found))}", f"a split {' or '.join(SPLITS['train'])}")
    if held_out < 1 and not all(named.values()):
        raise ValueError(f"held_out must be at least 1 for a data set without {', '.join(SPLITS)}, got {held_out}")
    missing = [split for split, name in named.items() if not name]
    splits, names = {}, {}
    for split, name in named.items():
        begin = missing.index(split) * held_out if split in missing else 0
        if split == "train":
            begin, end = len(missing) * held_out, None
        else:
            end = begin + held_out if split in missing else None
        source = name or named["train"]
        names[split] = source if name and not begin else f"{source}, rows {begin} to {end or 'the last'}"
        names[split] = f"{data}, {names[split]}"
        splits[split] = _rows(found[source], f"{data} {source}", column, begin, end)
    prints = {} if streaming else {name: found[name]._fingerprint for name in found}
    local = source_key(*(file for file in sorted(root.rglob("*")) if file.is_file())) if root.is_dir() else prints
    key = {"data": data, "config": config, "column": column, "held_out": held_out, "sources": local}
    return Texts(splits, key, names)


def _opened(root: Path, data: str, config: str, streaming: bool) -> dict[str, Any]:
    import datasets

    try:
        if (root / "dataset_dict.json").is_file() or (root / "dataset_info.json").is_file():
            apart({folder.name: sorted(folder.glob("*.arrow")) for folder in root.iterdir() if folder.is_dir()})
            found = datasets.load_from_disk(str(root))
            found = found if isinstance(found, datasets.DatasetDict) else datasets.DatasetDict(train=found)
            return {name: rows.to_iterable_dataset() for name, rows in found.items()} if streaming else dict(found)
        if root.is_dir():
            kinds = sorted({TABLES[file.suffix] for file in root.iterdir() if file.suffix in TABLES})
            if len(kinds) > 1:
                raise bad(data, 0, f"its files are of several formats, {', '.join(kinds)}", "files of one format")
            return dict(datasets.load_dataset(kinds[0], data_files=_by_split(root), streaming=streaming))
        return dict(datasets.load_dataset(data, config or None, streaming=streaming))
    except BadData:
        raise
    except Exception as error:  # what it raises depends on the client that the hub's library is built on
        reason = next(iter(str(error).strip().splitlines()), "")
        raise BadData(
            f"data: {data} cannot be opened: {type(error).__name__}: {reason}; allowed: a data set of the Hugging Face "
            "hub (and --task.config, where it has several), a folder with text files or with tables, a text file"
        ) from error


def _by_split(root: Path) -> dict[str, list[str]]:
    found: dict[str, list[Path]] = {}
    for file in sorted(file for file in root.iterdir() if file.suffix in TABLES):
        words = set(re.split(r"[\W_]+", file.name.lower()))
        for split, names in SPLITS.items():
            if words & set(names):
                found.setdefault(split if split != "val" else "validation", []).append(file)
    if "train" not in found:
        raise bad(root, 0, "no file of it is named after the split train", "files such as train.jsonl")
    apart(found)
    return {split: list(map(str, files)) for split, files in found.items()}


def _rows(table: Any, name: str, column: str, begin: int, end: int | None) -> Callable[[], Iterator[str]]:
    def rows() -> Iterator[str]:
        found: Iterable[dict[str, Any]] = table.skip(begin) if begin else table
        number = begin
        for row in islice(found, None if end is None else end - begin):
            number += 1
            text = row.get(column)
            if column not in row:
                raise bad(name, number, f"the columns are {shown(', '.join(row))}", f"a column {column!r}")
            if not isinstance(text, str):
                raise bad(name, number, f"{column} is {shown(text)}", "a text")
            if text.strip():
                yield text

    return rows
