"""Every matrix class: its product against ``to_dense() @ v``, over the length.

    python -m benchmarks.matrices [--lengths 256 1024 4096] [--only Toeplitz ...] [--out FILE.md]

One sample, one head, values of width 64, float32. `matmul` is what a mixer runs (it takes the dense product by
itself where that is faster); `dense` builds the matrix and multiplies. The exponent is fitted to the times of
`matmul` over all lengths.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.measure import best_times, exponent, heading, peak_memory, publish, say, table
from matmix.matrices import all_classes

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
WIDTH = 64
# Building some matrices entry by entry takes minutes at the largest lengths: past this, dense is not run.
DENSE_SECONDS = 5.0


def grid_of(length: int) -> tuple[int, ...]:
    """A near-square grid of so many tokens (lengths are powers of two)."""
    rows = 1 << ((length.bit_length() - 1) // 2)
    return (rows, length // rows)


def measure(cls: type, lengths: tuple[int, ...]) -> dict[str, list[float | None]]:
    """Seconds and peak bytes of both ways at each length."""
    found: dict[str, list[float | None]] = {"matmul": [], "dense": [], "matmul_bytes": [], "dense_bytes": []}
    last = 0.0
    for length in lengths:
        torch.manual_seed(0)
        grid = grid_of(length) if cls.__name__ == "Kron" else (length,)
        matrix = cls.example(grid, 1, 1, torch.float32)
        values = torch.randn(1, max(1, matrix.shape[1]), matrix.shape[3], WIDTH)
        fast = lambda m=matrix, v=values: m.matmul(v)
        dense = lambda m=matrix, v=values: m.to_dense() @ v
        run_dense = last * 5 < DENSE_SECONDS
        times = best_times([fast, dense] if run_dense else [fast], budget=0.2 if length < 4096 else 0.4)
        found["matmul"].append(times[0])
        found["matmul_bytes"].append(peak_memory(fast))
        found["dense"].append(times[1] if run_dense else None)
        found["dense_bytes"].append(peak_memory(dense) if run_dense else None)
        last = times[1] if run_dense else last
        say(f"{cls.__name__:>24} L={length:<6} " + "  ".join(f"{1e3 * t:9.3f} ms" for t in times))
    return found


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}"


def _mb(size: float | None) -> str:
    return "-" if size is None else f"{size / 2**20:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--only", nargs="+", help="names of classes")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    lengths = tuple(options.lengths)
    if len(set(lengths)) < 2:
        parser.error(f"--lengths needs two or more, as an exponent is fitted to them, got {options.lengths}")
    classes = [c for c in all_classes() if options.only is None or c.__name__ in options.only]

    columns = ["class", "exponent", "as fast from L ="]
    columns += [f"{what} {length}" for length in lengths for what in ("ms", "x", "MB")]
    rows = []
    for cls in classes:
        found = measure(cls, lengths)
        pairs = list(zip(found["matmul"], found["dense"], strict=True))
        # The smallest length from which matmul is never slower than building the matrix and multiplying; where it
        # picks that way itself the two are equal, but for noise.
        slower = [length for length, (fast, dense) in zip(lengths, pairs, strict=True) if dense and fast > 1.1 * dense]
        start = next((length for length in lengths if not slower or length > max(slower)), None)
        row = [cls.__name__, f"{exponent(lengths, found['matmul']):.2f}", start or "never"]  # type: ignore[arg-type]
        for (fast, dense), size in zip(pairs, found["matmul_bytes"], strict=True):
            row += [_ms(fast), f"{dense / fast:.3g}" if dense and fast else "-", _mb(size)]
        rows.append(row)
    text = (
        heading("python -m " + " ".join(["benchmarks.matrices", *sys.argv[1:]]))
        + f"\n\nOne sample, one head, W = {WIDTH}, float32. ms: `matmul`; x: time of `to_dense() @ v` over it; "
        "as fast from: the length from which `matmul` is never over 1.1 times the other; MB: peak memory that `matmul` "
        f"adds. A dash: dense left out, it would take over {DENSE_SECONDS:.0f} s.\n\n" + table(columns, rows)
    )
    publish(f"# Products of the matrix classes\n\n{text}\n", options.out)


if __name__ == "__main__":
    main()
