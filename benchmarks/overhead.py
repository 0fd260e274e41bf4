"""What the abstraction costs: making a matrix and calling it, importing the library, training through the trainer.

    python -m benchmarks.overhead [--out FILE.md]

Each figure is a pair measured in turn in one run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure import heading, publish, say, table


def per_call(ours: Callable[[], object], raw: Callable[[], object], calls: int = 1000) -> tuple[float, float]:
    """Microseconds of both, the best of many short rounds in turn: a slow spell of the machine outlasts a round."""
    timers = [timeit.Timer(ours), timeit.Timer(raw)]
    best = [float("inf")] * 2
    with torch.no_grad():
        for _ in range(400):
            for index, timer in enumerate(timers):
                best[index] = min(best[index], timer.timeit(calls) / calls * 1e6)
    return best[0], best[1]


def objects() -> list[list[object]]:
    """Creation plus call against the raw tensor operation, on tensors so small that the operation hides nothing."""
    from matmix.matrices import Dense, Diagonal, LowRank, Softmax

    entries, scale = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4)
    values, thin = torch.randn(1, 1, 4, 2), torch.randn(1, 1, 4, 2)
    cases: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("Dense", lambda: Dense(entries).matmul(values), lambda: torch.matmul(entries, values)),
        ("Diagonal", lambda: Diagonal(scale).matmul(values), lambda: scale.unsqueeze(-1) * values),
        ("LowRank", lambda: LowRank(thin, thin).matmul(values), lambda: thin @ (thin.mT @ values)),
        (
            "Softmax",
            lambda: Softmax(thin, thin).matmul(values),
            lambda: scaled_dot_product_attention(thin, thin, values),
        ),
    ]
    rows = []
    for name, ours, raw in cases:
        mine, theirs = per_call(ours, raw)
        rows.append([f"{name}: make and call", f"{mine:.2f} us", f"{theirs:.2f} us", f"+{mine - theirs:.2f} us"])
        say(str(rows[-1]))
    return rows


def imports(rounds: int = 7) -> list[object]:
    """Seconds of a fresh process that imports the library, and of one that imports torch."""
    found: dict[str, list[float]] = {"matmix": [], "torch": []}
    for _ in range(rounds):
        for name in found:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {name}"], check=True)
            found[name].append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(found["matmix"], found["torch"], strict=True))
    return ["import matmix / import torch", *(f"{statistics.median(found[n]):.2f} s" for n in found), f"{ratio:.2f} x"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    options = parser.parse_args()

    from benchmarks.trainer import trainer_overhead

    rows = [*objects(), imports()]
    ours, bare, ratio = trainer_overhead()
    rows.append(["trainer step / bare PyTorch loop", f"{1e3 * ours:.2f} ms", f"{1e3 * bare:.2f} ms", f"{ratio:.3f} x"])
    text = heading("python -m benchmarks.overhead") + "\n\n" + table(["", "matmix", "raw", "difference"], rows)
    publish(f"# What the abstraction costs\n\n{text}\n", options.out)


if __name__ == "__main__":
    main()
