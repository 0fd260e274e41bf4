"""How the benchmarks measure: interleaved runs, the best of several, peak memory, fitted exponents."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch

from matmix.experiments.memory import peak

Work = Callable[[], object]


def best_times(works: Sequence[Work], budget: float = 0.3, least: int = 3, most: float = 4.0) -> list[float]:
    """Seconds of each piece of work, run in turn A B B A so that a slow spell of the machine meets all alike.

    A turn runs quick work several times, so that what the other work left in the caches is not charged to it.
    At least ``least`` rounds and ``budget`` seconds of each, unless ``most`` seconds are spent before.

    The minimum is quoted: everything else that a shared machine does only adds time.
    """
    # glibc keeps freed blocks up to the size of the largest that it has given back: after this one all work finds it
    # as in a process that has run for a while, whatever was freed before.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    best = [math.inf] * len(works)
    rounds, spent = 0, 0.0
    with torch.no_grad():
        for work in works:
            work()
        while rounds == 0 or (spent < most and (rounds < least or spent < budget * len(works))):
            for index in range(len(works)) if rounds % 2 == 0 else reversed(range(len(works))):
                work, turn = works[index], 0.0
                for _ in range(5):
                    start = time.perf_counter()
                    work()
                    elapsed = time.perf_counter() - start
                    best[index] = min(best[index], elapsed)
                    turn += elapsed
                    if turn > 0.01:
                        break
                spent += turn
            rounds += 1
    return best


def peak_memory(work: Work) -> int:
    """Bytes of tensors that the work has alive at its highest, its result included: the allocations of the profiler.

    The resident size of the process would tell less: freed memory stays with it, and is used again.
    """
    with torch.no_grad():
        return peak(work)


def operations(work: Work, runs: int = 5) -> dict[str, float]:
    """Seconds that one run of the work spends in each operation itself, by the operation's name: torch's profiler.

    On a GPU in each of its kernels.
    """
    gpu = torch.cuda.is_available()
    activity = torch.profiler.ProfilerActivity.CUDA if gpu else torch.profiler.ProfilerActivity.CPU
    with torch.no_grad():
        work()
        with torch.profiler.profile(activities=[activity]) as profiler:
            for _ in range(runs):
                work()
    spent = "self_device_time_total" if gpu else "self_cpu_time_total"
    return {event.key: 1e-6 * getattr(event, spent) / runs for event in profiler.key_averages()}


def exponent(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log time against log length, by least squares."""
    x = [math.log(length) for length in lengths]
    y = [math.log(second) for second in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / across


def heading(command: str) -> str:
    """Date, hardware, versions and the command, for the head of a results table."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{date.today().isoformat()}, {processor}, {torch.get_num_threads()} threads, {device}, "
        f"Python {platform.python_version()}, torch {torch.__version__}\n\n`{command}`"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with aligned columns."""
    cells = [[str(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def publish(report: str, out: Path | None) -> None:
    """A report to standard output and, where one is given, to a file."""
    print(report)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(report)


def say(text: str) -> None:
    """Progress, to standard error: standard output holds the results only."""
    print(text, file=sys.stderr, flush=True)
