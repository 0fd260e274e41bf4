"""Pictures of studies of forecasting: forecasts beside the truth, errors by step and series, what training made.

matmix study forecast --data ETTh1 --mixers default hydra --seeds 3
matmix picture forecasts --study runs/forecast --out forecasts.png
matmix picture learned --study runs/forecast --out learned.png
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from matmix.experiments.folder import load_model, read_config
from matmix.experiments.plugins import NotNamed, data_only
from matmix.experiments.registry import task_class
from matmix.experiments.report.collect import Run, Setting, collect
from matmix.experiments.task import inputs_of
from matmix.matrices import Identity
from matmix.matrices.base import Matrix
from matmix.mixers.base import Mixer
from sequence.pictures import COLOURS
from sequence.series.saturation import saturation
from sequence.series.tasks.forecast import Forecast

STEPS = 16
"""Fewest tokens of a matrix that shows something, where a model has one of so many."""


class Errors(NamedTuple):
    """Of a model on the test: its forecasts of one window, and mean squared errors of all."""

    window: np.ndarray
    """(horizon, C), scaled."""
    by_step: np.ndarray
    """(horizon,)."""
    by_column: np.ndarray
    """(C,)."""


def forecasts(study: Path, out: Path, *, place: float = 0.5, column: str = "") -> str:
    """A row for each task of a study: one window of its test in its own unit, and errors by step and by column.

    Of each mixer the best weights of the first seed; grey is the last season again. Also said of each data set: the
    best naive forecast, DLinear where the study has it, the best arm, and whether their gap is more than noise.

    Args:
        study: folder of a study with the task `forecast`.
        out: picture to write; its ending picks the format (png, svg, pdf).
        place: which window of the test, from 0, the first, to 1, the last.
        column: which series; by default the last, the target.
    """
    from matplotlib.figure import Figure

    from matmix.inspect.pictures import short

    if not 0 <= place <= 1:
        raise ValueError(f"place must be from 0 to 1, got {place}")
    settings = _settings(study)
    figure = Figure(figsize=(15, 3.4 * len(settings)), dpi=110, layout="constrained")
    rows = figure.subplots(len(settings), 3, squeeze=False)
    for axes, setting in zip(rows, settings, strict=True):
        runs = _first(setting)
        task = read_config(runs[0].folder).make_task()
        assert isinstance(task, Forecast)
        names = task.table.columns
        if column and column not in names:
            raise ValueError(f"column must be one of {', '.join(names)}, got {column!r}")
        at = names.index(column) if column else len(names) - 1
        windows = task.windows("test")
        number = round(place * (len(windows) - 1))
        past, truth, *_ = (part[0].numpy() for part in windows.take(torch.tensor([number])))
        restored = _in_its_unit(task, at)
        origin = windows.begins[number] + task.length
        dates = task.table.dates[origin - task.length : origin + task.steps]
        axes[0].plot(dates, restored(np.concatenate((past[:, at], truth[:, at]))), color="black", linewidth=1.2)
        axes[0].axvline(dates[task.length], color="0.6", linewidth=0.8, linestyle=":")
        where = f"{names[at]}, window {number + 1:,} of {len(windows):,}"
        axes[0].set_title(f"{short(setting.name, 60)}\n{where}", fontsize=9)
        axes[0].tick_params(axis="x", labelrotation=30, labelsize=7)
        found = {"last season": _last_season(task, number), **{run.mixer: _errors(run, number) for run in runs}}
        for index, (name, errors) in enumerate(found.items()):
            look: dict[str, Any] = {"color": COLOURS[(index - 1) % len(COLOURS)] if index else "0.6", "linewidth": 1.1}
            axes[0].plot(dates[task.length :], restored(errors.window[:, at]), **look)
            axes[1].plot(1 + np.arange(task.steps), errors.by_step, label=name, **look)
            axes[2].plot(np.arange(len(names)), errors.by_column, marker="o", markersize=3, **look)
        axes[1].set_xlabel("step ahead")
        axes[1].set_ylabel("test MSE, scaled")
        axes[1].legend(fontsize=7)
        if len(names) <= 30:
            axes[2].set_xticks(np.arange(len(names)), names, rotation=60, fontsize=7)
        axes[2].set_xlabel("series")
        for axis in axes:
            axis.grid(alpha=0.25, linewidth=0.6)
    by_task = collect(study).by_task().items()
    scored = next(found for name, found in by_task if _is_forecast(name))
    return "\n".join((_save(figure, out), *saturation(scored)))


def learned(study: Path, out: Path) -> str:
    """A matrix of each mixer before training and after it: of the last mixer that has one other than the identity, of
    one with 16 tokens or more where there is such; first head. Without such a mixer, any layer that mixes.

    Args:
        study: folder of a study; any task will do.
        out: picture to write; its ending picks the format (png, svg, pdf).
    """
    from matmix.inspect.pictures import Panel, draw, kind, short

    rows = []
    for setting in _settings(study, any_task=True):
        for run in _first(setting):
            task, model = load_model(run.folder)
            config = read_config(run.folder)
            named = inputs_of(task.example())
            before = _late_matrix(task.model(config.mixer, config.seed).eval(), named)
            after = _late_matrix(model, named)
            if before is None or after is None:
                continue
            title = f"{short(setting.name, 40)}\n{run.mixer}, before"
            change = float((after.entries - before.entries).norm() / before.entries.norm().clamp_min(1e-12))
            what = f"{short(after.name, 20)}: {short(kind(after.matrix), 20)}\nafter, moved by {change:.1%}"
            rows.append([Panel(before.entries, title), Panel(after.entries, what)])
    if not rows:
        raise ValueError(f"{study} has no finished run of a model that shows a matrix")
    heading = "Matrices of a late layer before and after training, for one example (best weights, first seed)"
    return _save(draw(rows, heading, relative=True), out)


def _is_forecast(name: str) -> bool:
    """Whether a task is one of forecasting; one in a file that is not imported here is another."""
    try:
        with data_only():
            return issubclass(task_class(name), Forecast)
    except NotNamed:
        return False


def _settings(study: Path, *, any_task: bool = False) -> list[Setting]:
    """Those of a study that have a finished run of `forecast`, or of any task."""
    found = [
        setting
        for setting in collect(study).settings
        if any(run.score is not None for run in setting.runs)
        and (any_task or isinstance(read_config(_first(setting)[0].folder).make_task(), Forecast))
    ]
    if not found:
        raise ValueError(f"{study} has no finished run{'' if any_task else ' of the task forecast'}")
    return found


def _first(setting: Setting) -> list[Run]:
    """Of each mixer the finished run with the first seed."""
    done = {mixer: [run for run in setting.of(mixer) if run.score is not None] for mixer in setting.mixers}
    return [min(runs, key=lambda run: run.seed) for runs in done.values() if runs]


def _in_its_unit(task: Forecast, at: int) -> Any:
    return lambda scaled: scaled * task.scaler.std[at] + task.scaler.mean[at]


def _errors(run: Run, number: int) -> Errors:
    """Of the best weights on the whole test."""
    task, model = load_model(run.folder)
    assert isinstance(task, Forecast)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in task.batches("test", task.recipe().eval_batch_size):
            with torch.no_grad():
                yield task.forward(model, batch), batch.y["values"]

    return _of(pairs(), number)


def _last_season(task: Forecast, number: int) -> Errors:
    values, windows = task.rows[0], task.windows("test")
    phases = torch.arange(task.steps) % task.season - task.season

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for at in torch.arange(len(windows)).split(256):
            origins = at + windows.begins.start + task.length
            yield values[(origins[:, None] + phases).clamp_min(0)], windows.take(at)[1]

    return _of(pairs(), number)


def _of(pairs: Iterator[tuple[Tensor, Tensor]], number: int) -> Errors:
    total: Any = 0.0
    count, window = 0, None
    for forecast, truth in pairs:
        if count <= number < count + len(forecast):
            window = forecast[number - count].numpy()
        total = total + (forecast - truth).double().square().sum(0)
        count += len(forecast)
    assert window is not None
    mean = (total / count).numpy()
    return Errors(window, mean.mean(1), mean.mean(0))


class _Late(NamedTuple):
    name: str
    matrix: Matrix
    entries: Tensor


def _late_matrix(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> _Late | None:
    from matmix.inspect.pictures import dense
    from matmix.inspect.recording import matrices

    found = list(matrices(model, *inputs[0], **inputs[1]).items())
    modules = dict(model.named_modules())
    mixing = [one for one in found if isinstance(modules.get(one[0]), Mixer) and not isinstance(one[1], Identity)]
    found = mixing or found
    if not found:
        return None
    name, matrix = next((one for one in reversed(found) if one[1].shape[2] >= STEPS), found[-1])
    return _Late(name, matrix, dense(matrix)[0])


def _save(figure: Any, out: Path) -> str:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return str(out)
