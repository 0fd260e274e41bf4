"""Rows of different lengths, end to end in one array: what a prepared data set of sequences is on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np


@dataclass(frozen=True, eq=False)
class Ragged:
    """Row i is `values[starts[i]:ends[i]]`."""

    values: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def open(cls, folder: Path, name: str) -> Ragged:
        """What a `RaggedWriter` wrote; the values stay on disk and are mapped into memory."""
        edges = np.load(folder / f"{name}.starts.npy")
        return cls(np.load(folder / f"{name}.npy", mmap_mode="r"), edges[:-1], edges[1:])

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.starts[index] : self.ends[index]]

    @property
    def lengths(self) -> np.ndarray:
        return self.ends - self.starts

    def chosen(self, indices: np.ndarray) -> Ragged:
        """Some of the rows; the values are shared."""
        return Ragged(self.values, self.starts[indices], self.ends[indices])


class RaggedWriter:
    """Writes rows as they come, so that they need not fit in memory."""

    def __init__(self, folder: Path, name: str, dtype: str = "uint8") -> None:
        self.folder, self.name, self.dtype = folder, name, np.dtype(dtype)
        self.lengths: list[int] = []
        self.file = open(folder / f"{name}.npy", "wb")  # noqa: SIM115 (closed by __exit__)
        self._header(0)
        self.begin = self.file.tell()

    def __enter__(self) -> RaggedWriter:
        return self

    def __len__(self) -> int:
        return len(self.lengths)

    def append(self, row: np.ndarray) -> None:
        self.lengths.append(len(row))
        self.file.write(np.ascontiguousarray(row, self.dtype).tobytes())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self.file:
            if kind is None:
                self.file.seek(0)
                self._header(sum(self.lengths))
                # numpy pads its header so that the first axis can grow in place.
                assert self.file.tell() == self.begin
                starts = np.cumsum([0, *self.lengths], dtype=np.int64)
                np.save(self.folder / f"{self.name}.starts.npy", starts)

    def _header(self, count: int) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(self.file, header)
