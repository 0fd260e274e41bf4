"""What surgery costs on a ViT of twelve layers: replacing, running what was put in, recording.

    python -m benchmarks.surgery [--batch 4] [--out FILE.md]

The model is timm's `vit_tiny_patch16_224` with random weights. What is compared is measured in turn in one run.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import timm
import torch
from torch import nn

from benchmarks.measure import best_times, heading, publish, say, table
from matmix import surgery
from matmix.inspect import record

MODEL = "vit_tiny_patch16_224"
PUT = {  # what is put in the place of all twelve
    "matmix's attention": ("attention(head_dim=64, qkv_bias=True, proj_bias=True)", "module"),
    "hydra": ("hydra(expand=1)", "module"),
    "a Toeplitz matrix": ("toeplitz", "matrix"),
}


def vit() -> nn.Module:
    """The model, built anew."""
    torch.manual_seed(0)
    return timm.create_model(MODEL).eval()


def replacing(rounds: int = 5) -> list[list[str]]:
    """Seconds of `find`, of `replace` and of `restore`, the best of several models."""
    rows = []
    for name, (spec, level) in PUT.items():
        seen: list[tuple[float, float, float]] = []
        for _ in range(rounds):
            model = vit()
            marks = [time.perf_counter()]
            surgery.find(model)
            marks.append(time.perf_counter())
            report = surgery.replace(model, spec, level=level)
            marks.append(time.perf_counter())
            report.restore()
            marks.append(time.perf_counter())
            seen.append(tuple(b - a for a, b in itertools.pairwise(marks)))
        find, put, back = (min(column) for column in zip(*seen, strict=True))
        rows.append([f"{name}, `{spec}`, {level}", f"{find:.2f} s", f"{put:.2f} s", f"{1e3 * back:.1f} ms"])
        say(str(rows[-1]))
    return rows


def running(batch: int) -> list[list[str]]:
    """A forward of timm's model, of the same with other mixers, and of timm's under a recording."""
    images = torch.randn(batch, 3, 224, 224)
    plain, changed = vit(), []
    for spec, level in PUT.values():
        model = vit()
        surgery.replace(model, spec, level=level)
        changed.append(model)

    def recorded(model: nn.Module) -> None:
        with record(model):
            model(images)

    def opened(model: nn.Module) -> None:
        with record(model):
            pass

    def noted(model: nn.Module) -> None:
        with record(model) as found:
            model(images)
        for matrix in found.values():
            matrix.to_dense()

    works = [
        lambda: plain(images),
        *(lambda model=model: model(images) for model in changed),
        lambda: recorded(plain),
        *(lambda model=model: recorded(model) for model in changed),
        lambda: noted(plain),
        lambda: opened(plain),
    ]
    names = [
        f"timm's {MODEL}",
        *(f"with {name}" for name in PUT),
        "timm's, recorded",
        *(f"with {name}, recorded" for name in PUT),
        "timm's, recorded and every entry written out",
        "a recording begun and ended, of no forward",
    ]
    seconds = best_times(works, budget=5.0, most=150.0)
    bases = [0, *(0 for _ in PUT), *range(len(PUT) + 1), 0, 0]
    return [
        [name, f"{1e3 * s:.1f} ms", f"{s / seconds[base]:.2f}", "" if at == 0 else names[base]]
        for at, (name, s, base) in enumerate(zip(names, seconds, bases, strict=True))
    ]


def alone(batch: int) -> list[list[str]]:
    """One of the twelve modules by itself, where a slow spell of the machine outlasts many of its calls."""
    plain, changed = vit(), vit()
    surgery.replace(changed, *PUT["matmix's attention"][:1])
    tokens = torch.randn(batch, 197, 192)
    theirs, ours = plain.blocks[0].attn, changed.blocks[0].attn
    seconds = best_times([lambda: theirs(tokens), lambda: ours(tokens)], budget=4.0, most=30.0)
    names = ["timm's attention", "matmix's, as it stands in its place"]
    return [[name, f"{1e6 * s:.0f} us", f"{s / seconds[0]:.3f}"] for name, s in zip(names, seconds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="images of a forward")
    parser.add_argument("--note", default="", help="what is to be said of the machine")
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    options = parser.parse_args()
    text = "\n\n".join(
        [
            heading("python -m benchmarks.surgery") + (f"\n\n{options.note}" if options.note else ""),
            f"Twelve sites of timm's {MODEL}; `replace` builds and checks everything before it changes anything.",
            table(["replacement", "find", "replace", "restore"], replacing()),
            f"One forward of a batch of {options.batch}, without gradients.",
            table(["model", "forward", "times", "that of"], running(options.batch)),
            f"One of the twelve modules, on a batch of {options.batch}.",
            table(["module", "forward", "times"], alone(options.batch)),
        ]
    )
    publish(f"# Surgery\n\n{text}\n", options.out)


if __name__ == "__main__":
    main()
