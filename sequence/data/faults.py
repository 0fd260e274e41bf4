"""What is said of data that are damaged: the file, the line, the value, and what is allowed there."""

from __future__ import annotations

import bz2
import csv
import filecmp
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar, cast

import numpy as np

from matmix.files import Damaged, read_arrays

T = TypeVar("T")
GZIP = b"\x1f\x8b"
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)
"""What decompressors raise over what they cannot read."""


class BadData(ValueError):
    """What is wrong lies in the data; the words name file and line."""


def bad(file: object, line: int, what: str, allowed: str) -> BadData:
    """The error of one line (counted from 1; 0 = of the file as a whole)."""
    where = f"{file}, line {line}" if line else f"{file}"
    return BadData(f"data: {where}: {what}; allowed: {allowed}")


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of numpy, as `matmix.files.read_arrays` has them.

    Raises:
        BadData: for a file that is none.
    """
    try:
        return read_arrays(path, "arrays of numbers")
    except (Damaged, FileNotFoundError) as error:
        raise BadData(f"data: {error}; allowed: a whole .npz or .npy file") from None


def state_of(path: Path) -> tuple[int, int]:
    """What is another where a file was changed: the time of the last change, and the size.

    Raises:
        BadData: for what is not there, or cannot be reached.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise bad(path, 0, f"it cannot be opened: {error.strerror or error}", "a file that can be read") from None
    return state.st_mtime_ns, state.st_size


@contextmanager
def from_the_hub(name: str, allowed: str) -> Iterator[None]:
    """Within, a data set of the Hugging Face hub is opened: whatever fails there is said with what is allowed instead.

    What is raised depends on the client that the hub's library is built on, so every exception is meant.
    """
    try:
        yield
    except BadData:
        raise
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        raise BadData(
            f"data: the hub's data set {name} cannot be opened: {type(error).__name__}: {text}; allowed: {allowed}"
        ) from error


def apart(files: Mapping[str, Iterable[Path]]) -> None:
    """Refuse a file that stands in two splits, by its name, by a link or as a copy: what one tests on would be what one
    trains on.

    Args:
        files: of each split. Only files of one size are read.

    Raises:
        BadData: for the first file of two splits, or one that cannot be reached.
    """
    seen: dict[int, list[tuple[str, Path]]] = {}
    for split, paths in files.items():
        for path in paths:
            size = state_of(path)[1]
            alike = seen.setdefault(size, [])
            for other, first in alike:
                if other != split and size and filecmp.cmp(first, path, shallow=False):
                    one = f"{first} and {path} are {'one file' if path.samefile(first) else 'the same, byte by byte'}"
                    raise BadData(f"data: {one}, and stand for {other} and {split}; allowed: files of its own for each")
            alike.append((split, path))


class Broken:
    """What is done about damaged rows: "stop" raises the first, "skip" leaves them out and counts them."""

    def __init__(self, wish: str) -> None:
        check_broken(wish)
        self.skip = wish == "skip"
        self.count = 0
        self.first: list[str] = []

    def kept(self, rows: Iterator[T | BadData]) -> Iterator[T]:
        """The sound rows of a reader."""
        for row in rows:
            if not isinstance(row, BadData):
                yield row
                continue
            if not self.skip:
                raise row
            self.count += 1
            if len(self.first) < 5:
                self.first.append(str(row))

    def facts(self) -> dict[str, Any]:
        """How many were left out, and the first of them."""
        return {"left out as damaged": self.count, "the first of them": self.first} if self.count else {}


def check_broken(wish: str) -> None:
    if wish not in ("stop", "skip"):
        raise ValueError(f"broken: {wish!r}; allowed: 'stop' or 'skip'")


def shown(value: object, most: int = 60) -> str:
    """A value as it stands in an error: quoted, in one line, cut where it is long."""
    text = str(value)
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def open_binary(path: Path) -> BinaryIO:
    """A file to read, unpacked on the way where it is packed: by what stands in it for gzip, else by its ending.

    Raises:
        BadData: for what cannot be opened, such as a folder of that name.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == GZIP
    except OSError as error:
        raise bad(path, 0, f"it cannot be opened: {error.strerror or error}", "a file that can be read") from None
    if packed:
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".bz2":
        return cast(BinaryIO, bz2.open(path, "rb"))
    return cast(BinaryIO, lzma.open(path, "rb")) if path.suffix == ".xz" else open(path, "rb")


def byte_lines(file: IO[bytes], name: object) -> Iterator[bytes]:
    """The lines of a file. Where its packing is damaged or cut short, the error names the first line that is lost."""
    number = 0
    try:
        for line in file:
            number += 1
            yield line
    except UNREADABLE as error:
        raise bad(name, number + 1, f"it cannot be read on: {_reason(error)}", "a whole file; get it again") from error


def table(lines: Iterator[str], name: object, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """The rows of a csv or tsv file, quoted or not, each with the number of the line on which it ends."""
    reader = csv.reader(lines, delimiter=delimiter)
    with wide_fields():
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise bad(name, reader.line_num, str(error), "rows of a csv file") from None
            yield reader.line_num, row


def text_lines(file: IO[bytes], name: object) -> Iterator[str]:
    """The lines of a file as text, for `csv.reader`."""
    for number, line in enumerate(byte_lines(file, name), 1):
        yield decoded(line, name, number)


def decoded(line: bytes, name: object, number: int) -> str:
    """One line as text."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad(name, number, f"the byte {line[error.start]:#04x} at {error.start} is no text", "UTF-8") from None


@contextmanager
def wide_fields(most: int = 2**30) -> Iterator[None]:
    """Python's csv reader refuses fields above 128 KiB, and papers are longer; the limit is one for the process."""
    before = csv.field_size_limit(most)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
