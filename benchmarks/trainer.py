"""A training step of `matmix.experiments` against the loop one would write by hand."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from matmix.experiments.run import RunConfig
from matmix.experiments.trainer import fit

WINDOW = 10


def trainer_overhead(windows: int = 60, mixer: str = "attention") -> tuple[float, float, float]:
    """Median seconds of a step in the trainer and in the bare loop, and the median ratio.

    Both train the same encoder on the digits, on the same batches, with the same optimiser and clipping. They take
    turns: whenever the trainer reports (every ten steps) the bare loop does ten steps, and each window of the trainer
    is compared with the mean of the bare ones before and after it, so that a busy machine slows both. The trainer's
    time has its learning rate, logging and progress in it, not the evaluation at the end.
    """
    steps = WINDOW * windows
    recipe = {"steps": steps, "log_every": WINDOW, "eval_every": steps, "checkpoint_every": 2 * steps}
    config = RunConfig("digits", mixer, 0, recipe=recipe)
    loop = _bare(config)
    ours: list[float] = []
    bare: list[float] = []
    left = 0.0

    def turn(news: dict[str, Any]) -> None:
        nonlocal left
        arrived = time.perf_counter()
        ours.append((arrived - left) / WINDOW)
        next(loop)
        left = time.perf_counter()
        bare.append((left - arrived) / WINDOW)

    with tempfile.TemporaryDirectory() as folder:
        fit(config, Path(folder), turn)
    # The first window of each pays for warming up.
    ratios = [2 * ours[i] / (bare[i - 1] + bare[i]) for i in range(2, windows)]
    return statistics.median(ours[2:]), statistics.median(bare[2:]), statistics.median(ratios)


def _bare(config: RunConfig) -> Iterator[None]:
    """The loop by hand; yields after every window."""
    task, recipe = config.make_task(), config.make_recipe()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = task.model(config.mixer, config.seed).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    batches = task.batches("train", recipe.batch_size, seed=config.seed)
    while True:
        for _ in range(WINDOW):
            x, y, _ = next(batches)
            loss = torch.nn.functional.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad()
        loss.item()
        yield


if __name__ == "__main__":
    trainer, loop, ratio = trainer_overhead()
    print(f"trainer {1e3 * trainer:.2f} ms a step, bare loop {1e3 * loop:.2f} ms, ratio {ratio:.3f}")
