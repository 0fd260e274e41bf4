"""A training step of `matmix.experiments` against the loop one would write by hand."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from matmix.experiments.run import RunConfig
from matmix.experiments.trainer import fit

WINDOW = 10


def trainer_overhead(rounds: int = 7, steps: int = 60, mixer: str = "attention") -> tuple[float, float, float]:
    """Seconds of a step in the trainer and in the bare loop, and the median over rounds of their ratio.

    Both train the same encoder on the digits, on the same batches, with the same optimiser and clipping, and are timed
    alike: means over windows of ten steps, their median, the first left out. The rounds alternate. The trainer's time
    has its logging in it, not the evaluations.
    """
    recipe = {"steps": steps, "log_every": WINDOW, "eval_every": steps, "checkpoint_every": 10 * steps}
    config = RunConfig("digits", mixer, 0, recipe=recipe)
    ours, bare = [], []
    for index in range(rounds):
        pair = (ours, bare) if index % 2 else (bare, ours)
        for times in pair:
            times.append(_trainer(config) if times is ours else _bare(config))
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    return statistics.median(ours), statistics.median(bare), ratio


def _trainer(config: RunConfig) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return fit(config, Path(folder), None)["step_seconds"]


def _bare(config: RunConfig) -> float:
    task, recipe = config.make_task(), config.make_recipe()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = task.model(config.mixer, config.seed).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    batches = task.batches("train", recipe.batch_size, seed=config.seed)
    windows, clock = [], time.perf_counter()
    for step in range(1, recipe.steps + 1):
        x, y, _ = next(batches)
        loss = torch.nn.functional.cross_entropy(model(x.to(device)), y.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        if step % WINDOW == 0:
            loss.item()
            now = time.perf_counter()
            windows.append((now - clock) / WINDOW)
            clock = now
    return statistics.median(windows[1:])


if __name__ == "__main__":
    trainer, loop, ratio = trainer_overhead()
    print(f"trainer {1e3 * trainer:.2f} ms a step, bare loop {1e3 * loop:.2f} ms, ratio {ratio:.3f}")
