"""Filters on small grids: by products with the matrices of the transforms against by the transforms, over the grid.

    python -m benchmarks.small_grids [--batch 8] [--double] [--budget 0.2] [--out FILE.md]

``Circulant.matmul``, forward and forward with backward (gradients of values and spectra), one thread, processor
time at its best in turn; a sample has as many rows as there are channels. From these tables comes
``matmix.ops.fft.by_products``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.compiled import best_processor_times
from benchmarks.measure import Work, heading, publish, table
from matmix.matrices import Circulant
from matmix.ops import fft

GRIDS = ((16,), (49,), (64,), (100,), (128,), (196,), (4, 4), (7, 7), (8, 8), (10, 10), (12, 12), (14, 14))
HEADS = (64, 1024)


def work(grid: tuple[int, ...], heads: int, batch: int, both: bool, products: bool) -> Work:
    """The filter one way."""
    torch.manual_seed(0)
    length = math.prod(grid)
    tokens = torch.randn(batch, length, heads, requires_grad=both)
    spectrum = Circulant.from_kernel(torch.randn(1, heads, *grid), grid).spectrum.requires_grad_(both)

    def run() -> object:
        with patch.object(fft, "by_products", lambda *_: products), torch.set_grad_enabled(both):
            mixed = Circulant(spectrum, grid).matmul(tokens.mT.unsqueeze(-1)).squeeze(-1).mT
            return torch.autograd.grad(mixed, (tokens, spectrum), torch.ones_like(mixed)) if both else mixed

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--double", action="store_true", help="in float64")
    parser.add_argument("--budget", type=float, default=0.2, help="least processor seconds of each")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64 if options.double else torch.float32)
    rows = []
    for grid in GRIDS:
        row = ["x".join(map(str, grid))]
        for heads in HEADS:
            for both in (False, True):
                ways = [work(grid, heads, options.batch, both, products) for products in (False, True)]
                transforms, products = best_processor_times(ways, options.budget)
                row += [f"{1e3 * transforms:.2f}", f"{1e3 * products:.2f}", f"{transforms / products:.2f}"]
        rows.append(row)
    columns = ["grid"]
    for heads in HEADS:
        for what in ("forward", "both"):
            columns += [f"{what}, {heads} channels: transforms, ms", "products", "x"]
    command = f"python -m benchmarks.small_grids --batch {options.batch} --budget {options.budget:g}"
    command += " --double" * options.double
    publish(f"# Filters on small grids\n\n{heading(command)}\n\n{table(columns, rows)}\n", options.out)


if __name__ == "__main__":
    main()
