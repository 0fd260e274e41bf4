"""Image models compiled on both sides: forward and training step, against timm's with the same weights and, where timm
has none that is like ours, against our model around the plain form of its mixers.

    python -m benchmarks.vision --compile [--batch 4] [--size 224] [--only NAME ...] [--budget 8] [--out FILE.md]

Four of each model run in turn: ours and theirs, compiled by Inductor and eager. The seconds are the processor time of
this process at its best, on one thread, so that a busy machine counts as little as it can.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import vision
from benchmarks.measure import Work, say, table
from benchmarks.plain import FORMS
from benchmarks.plain.forms import name_of
from matmix.mixers import Mixer

PLAIN = ("dfformer_s18", "gfnet_xs")
"""Models whose other side is ours around plain mixers."""


class Plain(nn.Module):
    """The plain form of a mixer, on its weights."""

    def __init__(self, mixer: Mixer) -> None:
        super().__init__()
        self.mixer, self.form = mixer, FORMS[name_of(mixer)]

    def forward(self, x: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        return self.form(self.mixer, x, self.mixer.grid if grid is None else grid)


def around_plain(model: nn.Module) -> nn.Module:
    """A copy of a model whose mixers are in their plain form."""
    other = copy.deepcopy(model)
    for name, mixer in [(name, module) for name, module in other.named_modules() if isinstance(module, Mixer)]:
        parent, _, last = name.rpartition(".")
        setattr(other.get_submodule(parent), last, Plain(mixer))
    return other


def step(call: Callable[[Tensor], Tensor], weights: Sequence[Tensor], images: Tensor) -> list[Tensor]:
    """Forward and backward of a batch; the loss has a gradient at every logit."""
    with torch.enable_grad():
        loss = call(images).square().mean()
        return list(torch.autograd.grad(loss, weights, allow_unused=True))


def work(model: nn.Module, images: Tensor, train: bool, compiled: bool) -> Callable[[], Any]:
    """Forward, or forward and backward, of a model, ready to run; returns the logits, or the gradients."""
    call: Callable[[Tensor], Tensor] = torch.compile(model) if compiled else model
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run() -> Any:
        model.train(train)
        if train:
            return step(call, weights, images)
        with torch.no_grad():
            return call(images)

    return run


def best_processor_times(works: Sequence[Work], budget: float, least: int = 4) -> list[float]:
    """Processor seconds of each work at its best, run in turn A B B A for at least ``budget`` such seconds of each."""
    best, spent, rounds = [math.inf] * len(works), 0.0, 0
    for work in works:
        work()
    while rounds < least or spent < budget * len(works):
        for index in range(len(works)) if rounds % 2 == 0 else reversed(range(len(works))):
            start = time.process_time()
            works[index]()
            elapsed = time.process_time() - start
            best[index], spent = min(best[index], elapsed), spent + elapsed
        rounds += 1
    return best


def compare(name: str, pair: tuple[nn.Module, nn.Module], images: Tensor, budget: float) -> list[list[object]]:
    """Rows of the table: forward and step of one model.

    Raises:
        RuntimeError: where the outputs of any two differ.
    """
    rows: list[list[object]] = []
    for train in (False, True):
        torch.compiler.reset()
        four = [work(model, images, train, way) for way in (True, False) for model in pair]
        if not train:
            reference, *others = (run() for run in four)
            scale = reference.abs().max()
            for other in others:
                difference = float((other - reference).abs().max() / scale)
                if not difference < 1e-4:
                    raise RuntimeError(f"{name}: the outputs differ by {difference:.1e} of the largest")
        ours, theirs, our_eager, their_eager = best_processor_times(four, budget)
        rows.append(
            [name, "step" if train else "forward", *(f"{1e3 * t:.1f}" for t in (ours, theirs, our_eager, their_eager)),
             f"{theirs / ours:.2f}", f"{their_eager / our_eager:.2f}", f"{our_eager / ours:.2f}"]
        )  # fmt: skip
        say(" ".join(map(str, rows[-1])))
    return rows


def report(
    names: Sequence[str], pair: Callable[[str], tuple[nn.Module, nn.Module]], batch: int, size: int, budget: float
) -> str:
    """The table over models; ``pair`` gives ours and the other side."""
    images = torch.randn(batch, 3, size, size)
    rows = [row for name in names for row in compare(name, pair(name), images, budget)]
    columns = ("model", "", "ours compiled, ms", "theirs compiled", "ours eager", "theirs eager",
               "theirs / ours, compiled", "theirs / ours, eager", "ours: eager / compiled")  # fmt: skip
    return table(columns, rows)


def plain_pair(name: str, size: int) -> tuple[nn.Module, nn.Module]:
    """Ours, and ours around plain mixers."""
    torch.manual_seed(0)
    ours = vision.create_model(name, img_size=size, drop_path_rate=0.0).eval()
    return ours, around_plain(ours)
