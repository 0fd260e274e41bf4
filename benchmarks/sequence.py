"""The sequence encoder around several mixers, over the length: speed and memory of training, and speed token by token.

    python -m benchmarks.sequence [--lengths 1024 4096 16384] [--tokens 16384] [--dim 128] [--depth 2] [--only NAME ...]
        [--budget 1.0] [--out FILE.md]

Forward and backward of a classifier of bytes, at every length with as many tokens a step, so that what differs is the
length alone. In the same encoder stand transformers' Mamba-2 mixer and, in the place of whole blocks,
`nn.TransformerEncoderLayer`. What would need more memory than there is, by what it takes at the length before, is left
out and says so.

Then tokens per second of `step`, against transformers' Mamba-2 with its cache: the same weights, whose outputs are
compared first. Float32; a GPU is used where there is one.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.generation import BYTES, DEVICE, MAMBA2, Sizes, generation, mamba2_config
from benchmarks.measure import best_times, exponent, heading, publish, say, table
from matmix.experiments.memory import peak
from sequence.encoder import Encoder

CLASSES = 10
WRITTEN = "attention, not fused"
MIXERS = {
    "attention": "attention",
    WRITTEN: "attention",
    "attention, rotary": "attention(rotary=True)",
    "hydra": "hydra",
    "ssd": "ssd(d_state=64)",
    "s4d": "s4d",
    "ponet": "ponet",
    "fnet": 'fnet(norm="ortho")',
    "linear_attention": "linear_attention",
}
LAYER = "nn.TransformerEncoderLayer"
PEERS = (MAMBA2, LAYER)
SLOW = 2.0  # seconds of a step from which it is run twice, not for as long as the others


class Point(NamedTuple):
    """A model at a length: seconds and bytes of a step, or why there are none."""

    seconds: float
    memory: int
    missing: str = ""


# ------------------------------------------------------------------ models


class Alone(nn.Module):
    """A mixer of another package in the place of ours."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed: Tensor = self.inner(x)
        return mixed


class Whole(Alone):
    """A layer of another package in the place of a block."""

    def forward(self, x: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        mixed: Tensor = self.inner(x)
        return mixed


def classifier(name: str, length: int, sizes: Sizes) -> Encoder:
    """The encoder around a mixer, or around what stands in its place."""
    model = Encoder(
        lambda: nn.Embedding(BYTES, sizes.dim), MIXERS.get(name, "identity"), dim=sizes.dim, depth=sizes.depth,
        grid=(length,), head="class", outputs=CLASSES, position="learned",
    )  # fmt: skip
    for index in range(sizes.depth):
        if name == MAMBA2:
            model.blocks[index].mixer = Alone(mamba2_mixer(sizes))
        elif name == LAYER:
            layer = nn.TransformerEncoderLayer(
                sizes.dim, max(1, sizes.dim // 32), 2 * sizes.dim, 0.0, "gelu", batch_first=True, norm_first=True
            )
            model.blocks[index] = Whole(layer)
    return model.to(DEVICE)


def mamba2_mixer(sizes: Sizes) -> nn.Module:
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    return Mamba2Mixer(mamba2_config(sizes), 0)


# ------------------------------------------------------------------ training


def training_step(model: nn.Module, length: int, batch: int) -> Callable[[], None]:
    """Forward and backward of a batch of random bytes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(BYTES, (batch, length), generator=generator).to(DEVICE)
    y = torch.randint(CLASSES, (batch,), generator=generator).to(DEVICE)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> None:
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(model(x), y)
            torch.autograd.grad(loss, weights, allow_unused=True)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return step


def measure(
    names: Sequence[str], lengths: Sequence[int], tokens: int, sizes: Sizes, budget: float
) -> dict[str, list[Point]]:
    """Every model at every length; those at a length in turn."""
    found: dict[str, list[Point]] = {name: [] for name in names}
    for length in lengths:
        works: dict[str, Callable[[], None]] = {}
        memory: dict[str, int] = {}
        seconds: dict[str, float] = {}
        for name in names:
            missing = too_large(found[name])
            if not missing:
                torch.manual_seed(0)
                step = training_step(classifier(name, length, sizes), length, max(1, tokens // length))
                works[name] = unfused(step) if name == WRITTEN else step
                try:
                    memory[name], seconds[name] = peak(works[name], DEVICE), once(works[name])
                except (RuntimeError, MemoryError) as error:  # torch's error for memory that it does not get
                    if "memory" not in str(error):
                        raise
                    missing = "out of memory"
            if missing:
                found[name].append(Point(math.nan, 0, missing))
                say(f"{length:>6} {name:<28} {missing}")
            else:
                say(f"{length:>6} {name:<28} {1e3 * seconds[name]:>9.1f} ms {memory[name] / 2**20:>8.0f} MB")
        quick = [name for name in seconds if seconds[name] < SLOW]
        if quick:
            best = best_times([works[name] for name in quick], 2 * budget, most=8 * budget * len(quick))
            seconds |= {name: min(seconds[name], value) for name, value in zip(quick, best, strict=True)}
        for name in set(seconds) - set(quick):
            seconds[name] = min(seconds[name], once(works[name]))
        for name, value in seconds.items():
            found[name].append(Point(value, memory[name]))
    return found


def too_large(past: Sequence[Point]) -> str:
    """Why a model is not run at the next length: it was not at the one before, or what it takes, grown once more as it
    grew to here, is not there."""
    if not past:
        return ""
    if past[-1].missing:
        return past[-1].missing
    grown = past[-1].memory / past[-2].memory if len(past) > 1 else 1.0
    needed, there = past[-1].memory * max(1.0, grown), memory_left()
    return f"needs {needed / 2**30:.0f} GB of {there / 2**30:.0f}" if needed > 0.9 * there else ""


def unfused(step: Callable[[], None]) -> Callable[[], None]:
    """Attention whose scores are written out and kept, as before there were fused kernels."""

    def run() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            step()

    return run


def once(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def memory_left() -> float:
    """Bytes that can be had without moving others out; infinite where the system does not say."""
    if DEVICE == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), math.inf)


def training_report(found: dict[str, list[Point]], lengths: Sequence[int], tokens: int) -> str:
    """Tokens per second and memory at every length, and how the cost of a token grows."""
    counts = [max(1, tokens // length) * length for length in lengths]
    rows = []
    for name, points in found.items():
        speed = [point.missing or f"{count / point.seconds:,.0f}" for point, count in zip(points, counts, strict=True)]
        memory = ["-" if point.missing else f"{point.memory / 2**20:,.0f}" for point in points]
        whole = not any(point.missing for point in points) and len(points) > 1
        each = [point.seconds / count for point, count in zip(points, counts, strict=True)]
        grown = f"{each[-1] / each[0]:.2f}" if whole else "-"
        slope = f"{1 + exponent(lengths, each):.2f}" if whole else "-"
        rows.append([name, *speed, grown, slope, *memory])
    columns = ["mixer", *(f"tokens/s at {length:,}" for length in lengths)]
    columns += [
        f"cost a token, {lengths[-1]:,} over {lengths[0]:,}",
        "exponent",
        *(f"MB at {length:,}" for length in lengths),
    ]
    return table(columns, rows)


# ------------------------------------------------------------------ the document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--tokens", type=int, default=16384, help="of a step, at every length")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*MIXERS, *PEERS], help="names of the first table")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="sequences written side by side")
    parser.add_argument("--steps", type=int, default=64, help="tokens written after a prompt of as many")
    parser.add_argument("--budget", type=float, default=1.0, help="factor of the time spent on measuring")
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    options = parser.parse_args()
    sizes = Sizes(options.dim, options.depth)
    peer = importlib.util.find_spec("transformers") is not None
    names = options.only or [name for name in (*MIXERS, *PEERS) if peer or name != MAMBA2]
    found = measure(names, sorted(options.lengths), options.tokens, sizes, options.budget)
    steps = generation(sizes, options.batches, options.steps, options.steps, peer)
    text = "\n\n".join(
        [
            heading("python -m " + " ".join(["benchmarks.sequence", *sys.argv[1:]])),
            f"## Forward and backward\n\n{options.depth} blocks of width {options.dim}, float32, {options.tokens:,} "
            "tokens a step at every length. The exponent is that of the time of one sequence against its length. MB: "
            'what a step has alive at its highest, beside weights and batch. "not fused" keeps the scores of '
            "attention; all other attention is by PyTorch's fused kernels.",
            training_report(found, sorted(options.lengths), options.tokens),
            f"## Token by token\n\n{options.steps} tokens after a prompt of {options.steps}, greedy; no MLP, RMS norms "
            "and a tied head. The Mamba-2 of transformers has the weights of the model around ssd and writes the same "
            "tokens.",
            table(["sequences", "model", "tokens/s", "over ssd"], steps),
            *([] if peer else ["transformers is not installed: its Mamba-2 is left out."]),
        ]
    )
    publish(f"# Sequence models over the length\n\n{text}\n", options.out)


if __name__ == "__main__":
    main()
