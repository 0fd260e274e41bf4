"""Texts with a class each: IMDb's 50,000 reviews (Maas et al. 2011), from the Hugging Face hub or from files.

========================  =========================================================================================
`owner/name`              a data set of the hub, downloaded once by `datasets`: splits train and test, columns text
                          and label, as stanfordnlp/imdb has them
a folder                  files of a split each, csv (also .gz) or parquet, with `train` or `test` in their names, in
                          it or in its folders (`imdb_train.csv.gz`, `plain_text/train-00000-of-00001.parquet`);
                          columns text and label. Or tsv as GLUE is released (SST-2), without quoting: columns sentence
                          and label, and `dev` is the test, since the released test has no labels
========================  =========================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matmix.arguments import checking_arguments
from matmix.ranges import Place
from matmix.spec import close_names
from sequence.data.faults import BadData, apart, bad, from_the_hub, open_binary, shown, table, text_lines

HUB = "stanfordnlp/imdb"
CLASSES = ("negative", "positive")
ROWS = 25_000
"""Of each split, as published."""
KINDS = (".csv", ".parquet", ".tsv")
PACKED = (".gz", ".bz2", ".xz")
Review = tuple[str, int]


@checking_arguments()
def files_of(data: Place, depths: Sequence[str] = ("*", "*/*")) -> dict[str, list[Path]]:
    """The files of each split below a folder, in order; {} where `data` names no folder but a data set of the hub.

    Args:
        depths: where to look. No deeper: the release of the Long Range Arena holds millions of other files.

    Raises:
        BadData: where there is neither, or a split is there in two formats.
    """
    root = Path(data).expanduser()
    if not root.is_dir():
        if re.fullmatch(r"[\w.\-]+/[\w.\-]+", data) and not root.exists() and not Path(root.parts[0]).exists():
            return {}
        raise BadData(f"data: {data} is no folder; allowed: {_allowed()}")
    found: dict[str, list[Path]] = {"train": [], "test": []}
    for file in sorted(path for depth in depths for path in root.glob(depth) if path.is_file()):
        words = re.split(r"[\W_]+", file.name.lower())
        for split, files in found.items():
            if _kind(file) and split in words and "unsupervised" not in words:
                files.append(file)
    dev = [path for depth in depths for path in root.glob(depth) if re.match(r"dev\W", path.name.lower())]
    found["test"] = [path for path in sorted(dev) if _kind(path) == ".tsv"] or found["test"]
    for split, files in found.items():
        if len({_kind(file) for file in files}) > 1:
            names = ", ".join(str(file.relative_to(root)) for file in files)
            raise BadData(f"data: {root} has {split} in several formats: {names}; allowed: one format in the folder")
    missing = [split for split, files in found.items() if not files]
    if missing:
        near = close_names(missing[0], [path.stem for path in root.iterdir()])
        raise BadData(
            f"data: {root} has no file of the split {' or '.join(missing)}"
            + (f" (did you mean {' or '.join(near)}?)" if near else "")
            + f"; allowed: {_allowed()}"
        )
    apart(found)
    return found


@checking_arguments()
def read(data: Place, split: str) -> Iterator[Review | BadData]:
    """Text and class of every row of a split, or what is wrong with it."""
    files = files_of(data)
    if not files:
        yield from _hub(data, split)
        return
    for file in files[split]:
        rows: Iterator[tuple[int, Any, Any] | BadData]
        rows = _parquet(file) if _kind(file) == ".parquet" else _table(file, _kind(file) == ".tsv")
        for row in rows:
            yield row if isinstance(row, BadData) else _checked(str(file), *row)


def _checked(where: str, line: int, text: Any, label: Any) -> Review | BadData:
    if str(label) not in ("0", "1"):
        return bad(where, line, f"label {shown(label)}", "0 (negative) or 1 (positive)")
    if not isinstance(text, str) or not text:
        return bad(where, line, f"text {shown(text)}", "a text of at least one character")
    return text, int(label)


def _table(file: Path, tabs: bool) -> Iterator[tuple[int, Any, Any] | BadData]:
    with open_binary(file) as opened:
        lines = text_lines(opened, file)
        # Quotation marks in GLUE's files are words of the sentences.
        plain = ((number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(lines, 1))
        rows = plain if tabs else table(lines, file)
        line, header = next(rows, (1, []))
        name = "sentence" if tabs else "text"
        if not {name, "label"} <= set(header):
            raise bad(file, line, f"the columns are {shown(', '.join(header))}", f"a header with {name} and label")
        text, label = header.index(name), header.index("label")
        for line, row in rows:
            if len(row) == len(header):
                yield line, row[text], row[label]
            else:
                yield bad(file, line, f"{len(row)} columns", f"{len(header)}, as in the header: {', '.join(header)}")


def _parquet(file: Path) -> Iterator[tuple[int, Any, Any]]:
    """The rows, counted from 1 in place of lines."""
    from pyarrow import ArrowException, parquet

    number = 0
    try:
        opened = parquet.ParquetFile(file)
        if not {"text", "label"} <= set(opened.schema.names):
            raise bad(file, 0, f"the columns are {shown(', '.join(opened.schema.names))}", "text and label")
        for batch in opened.iter_batches(batch_size=1000, columns=["text", "label"]):
            for row in batch.to_pylist():
                number += 1
                yield number, row["text"], row["label"]
    except (ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise bad(file, number + 1, f"it cannot be read on: {reason}", "a whole parquet file; get it again") from error


def _hub(name: str, split: str) -> Iterator[Review | BadData]:
    import datasets

    with from_the_hub(name, _allowed()):
        rows = datasets.load_dataset(name, split=split)
        texts, labels = rows["text"], rows["label"]
    for number, (text, label) in enumerate(zip(texts, labels, strict=True), 1):
        yield _checked(f"{name} {split}", number, text, label)


def _kind(file: Path) -> str:
    """The format that a file's ending says; "" for none of those that are read."""
    name = file.name.lower()
    for end in PACKED:
        name = name.removesuffix(end)
    kind = Path(name).suffix
    return kind if kind in KINDS else ""


def _allowed() -> str:
    files = "train and test as csv or parquet, or train and dev as tsv"
    return f"{HUB} or another data set of the hub, or a folder with {files}"
