"""Time-series models: training steps against NeuralForecast's, and what an epoch of ETTh1 takes each model.

    python -m benchmarks.time_series [--budget 3] [--only NAME ...] [--threads 1] [--out FILE.md]

NeuralForecast brings much along and is wanted here alone: an environment of its own with it and with this package,

    python -m venv peers && peers/bin/pip install neuralforecast -e ".[series]"
    peers/bin/python -m benchmarks.time_series

Both sides train in turn, A B B A, on the same windows at the sizes of the published scripts for ETTh1: 32 windows of 96
steps of 7 series, horizon 96, float32, mean squared error, Adam, dropout 0.1. iTransformer gets one set of weights, and
the outputs are compared first; PatchTST is the one of TSLib here and the one of its paper there (learned positions,
batch norms), with as many weights but for 0.15 %. Quoted is the best time of a step, and what its tensors take beyond
the weights at the highest.

Then each model with its script's sizes for ETTh1 (those of the paper's scripts read 336 steps): an epoch has 265 such
steps, 257 where 336 are read.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import best_times, heading, peak_memory, publish, say, table
from matmix import load_published
from sequence.series.models import create_series_model, list_series_models
from sequence.series.tasks import scripts

LENGTH, CHANNELS, HORIZON, BATCH, MARKS = 96, 7, 96, 32, 4
ROWS = 8640  # of ETTh1's training split
PEER = "neuralforecast"
LONG = {"moderntcn": 336, "ffnet_ts": 336}
"""Models whose own script reads another window."""


def training(model: nn.Module, forward: Callable[[], Tensor], target: Tensor) -> Callable[[], None]:
    """One step: forward, backward and update."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    model.train()

    def step() -> None:
        with torch.enable_grad():
            optimizer.zero_grad()
            (forward() - target).square().mean().backward()
            optimizer.step()

    return step


def theirs_and_ours(name: str) -> tuple[Any, nn.Module]:
    """NeuralForecast's model and ours at the sizes of the script for ETTh1."""
    from neuralforecast import models

    if name == "patchtst":
        theirs = models.PatchTST(
            h=HORIZON, input_size=LENGTH, encoder_layers=1, n_heads=2, hidden_size=512, linear_hidden_size=2048,
            dropout=0.1, fc_dropout=0.1, head_dropout=0.1, attn_dropout=0.1, patch_len=16, stride=8, revin=True,
        )  # fmt: skip
        return theirs, create_series_model("patchtst", length=LENGTH, channels=CHANNELS, horizon=HORIZON)
    theirs = models.iTransformer(
        h=HORIZON, input_size=LENGTH, n_series=CHANNELS, hidden_size=128, n_heads=8, e_layers=2, d_ff=128, dropout=0.1
    )
    ours = create_series_model("itransformer", length=LENGTH, channels=CHANNELS, horizon=HORIZON)
    names = {name: name.replace("projector.", "projection.") for name in theirs.state_dict()}
    state = {ours: theirs.state_dict()[name] for name, ours in names.items()}
    return theirs, load_published(ours, state, source="thuml/Time-Series-Library")


def compared(name: str, budget: float) -> list[object]:
    """A row of the first table."""
    torch.manual_seed(0)
    theirs, ours = theirs_and_ours(name)
    x, y = torch.randn(BATCH, LENGTH, CHANNELS), torch.randn(BATCH, HORIZON, CHANNELS)
    given = x.mT.reshape(-1, LENGTH, 1) if name == "patchtst" else x  # it takes each series as a window

    def their_forward() -> Tensor:
        out: Tensor = theirs({"insample_y": given})
        return out.reshape(BATCH, CHANNELS, HORIZON).mT if name == "patchtst" else out

    if name == "itransformer":
        with torch.no_grad():
            torch.testing.assert_close(theirs.eval()({"insample_y": given}), ours.eval()(x), rtol=1e-4, atol=1e-4)
    works = [training(theirs, their_forward, y), training(ours, lambda: ours(x), y)]
    first, second = best_times(works, budget, most=20 * budget)
    memory = [peak_memory(work) / 2**20 for work in works]
    weights = [sum(p.numel() for p in model.parameters()) for model in (theirs, ours)]
    return [name, *(f"{n:,}" for n in weights), f"{1 / first:.4g}", f"{1 / second:.4g}", f"{first / second:.2f}",
            *(f"{m:.3g}" for m in memory)]  # fmt: skip


def epoch(name: str, budget: float) -> list[object]:
    """A row of the second table."""
    length = LONG.get(name, LENGTH)
    sizes = scripts.forecast(name, "ETTh1", HORIZON).sizes
    model: Any = create_series_model(name, length=length, channels=CHANNELS, horizon=HORIZON, marks=MARKS, **sizes)
    x, marks, y = (torch.randn(BATCH, steps, size) for steps, size in
                   ((length, CHANNELS), (length, MARKS), (HORIZON, CHANNELS)))  # fmt: skip
    future = torch.randn(BATCH, HORIZON, MARKS)
    work = training(model, lambda: model(x, marks, future), y)
    (seconds,) = best_times([work], budget, least=2, most=4 * budget)
    steps = -(-(ROWS - length - HORIZON + 1) // BATCH)
    weights = sum(p.numel() for p in model.parameters())
    return [name, length, f"{weights:,}", f"{1000 * seconds:.4g}", f"{steps * seconds:.3g}",
            f"{peak_memory(work) / 2**20:.3g}"]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds of every side, at least")
    parser.add_argument("--only", nargs="*", default=[], help="names of models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a Markdown file for the tables")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    command = heading(f"python -m benchmarks.time_series --budget {options.budget}")
    if importlib.util.find_spec(PEER) is not None:
        command += f", NeuralForecast {version(PEER)}"
    parts = ["# Time-series models", command]
    wanted = options.only or list_series_models()
    if importlib.util.find_spec(PEER) is None:
        parts.append(f"{PEER} is not installed here, so there is no comparison with it (see this module's docstring).")
    else:
        rows = []
        for name in ("itransformer", "patchtst"):
            if name in wanted:
                say(f"{name} against {PEER}")
                rows.append(compared(name, options.budget))
        parts.append(table(["model", "weights: NeuralForecast", "matmix", "steps a second: NeuralForecast", "matmix",
                            "ratio", "peak MiB: NeuralForecast", "matmix"], rows))  # fmt: skip
    rows = []
    for name in wanted:
        say(name)
        rows.append(epoch(name, options.budget))
    parts.append("An epoch of ETTh1, 32 windows a step, horizon 96:")
    parts.append(table(["model", "steps read", "weights", "ms a step", "s an epoch", "peak MiB"], rows))
    text = "\n\n".join(parts)
    publish(text + "\n", options.out)


if __name__ == "__main__":
    main()
