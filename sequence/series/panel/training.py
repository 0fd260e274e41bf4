"""From series to a trained model, by the project's trainer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from sequence.series.data.marks import frequency_of, marks
from sequence.series.models import SeriesModel, create_series_model
from sequence.series.panel.frames import Series
from sequence.series.panel.quantiles import WithQuantiles, pinball
from sequence.series.panel.settings import Settings
from sequence.series.panel.task import PanelTask, Plan, Rows, Scale, split

ERRORS = {"mse": lambda a, b: (a - b) ** 2, "mae": lambda a, b: (a - b).abs()}
EVERY = 50
"""Steps between two evaluations."""
UNMOVED = 1e-6
"""Change of a forecast, in deviations of the series, below which a model is said not to read the future."""


def rows_of(series: Sequence[Series], scales: Sequence[Scale], covariates: Scale) -> Rows:
    """All series in a row, with the features of their time."""
    frequency = frequency_of(max((one.dates for one in series), key=len))
    return Rows.of(series, scales, partial(marks, frequency=frequency), covariates)


def build(settings: Settings, channels: int, features: int, mixer: str) -> nn.Module:
    """An untrained model."""
    model: SeriesModel = create_series_model(
        settings.model, length=settings.lookback, channels=channels, goal="forecast", horizon=settings.horizon,
        mixer=mixer, marks=features, **settings.sizes,
    )  # fmt: skip
    if not settings.quantiles:
        return model
    return WithQuantiles(model, settings.lookback, settings.horizon, settings.quantiles)


def task_of(
    settings: Settings, series: Sequence[Series], scales: Sequence[Scale], covariates: Scale, held_out: Sequence[int]
) -> PanelTask:
    """The windows of some series, and how to train on them.

    Raises:
        ValueError: where no window has an observed target, or the model has no use for covariates that it is given.
    """
    from matmix.experiments.task import Recipe

    sizes = settings.lookback, settings.horizon
    rows = rows_of(series, scales, covariates)
    found: dict[str, list[Tensor]] = {"train": [], "val": []}
    for one, begin, out in zip(series, rows.begins, held_out, strict=True):
        for name, firsts in zip(found, split(len(one.dates), *sizes, out), strict=True):
            found[name].append(begin + torch.tensor(firsts, dtype=torch.int64))
    starts = {name: rows.measured(torch.cat(parts), *sizes) for name, parts in found.items()}
    if not len(starts["train"]):
        raise ValueError("no window to train on has an observed value in the steps to forecast")
    validated = len(starts["val"]) > 0
    if not validated:
        starts["val"] = starts["train"]
    recipe = Recipe(
        steps=settings.steps, batch_size=min(settings.batch_size, len(starts["train"])), lr=settings.lr,
        eval_every=min(EVERY, settings.steps), log_every=min(10, settings.steps), checkpoint_every=10**9,
        patience=settings.patience if validated else 0, eval_batch_size=max(256, settings.batch_size),
    )  # fmt: skip
    error = partial(pinball, settings.quantiles) if settings.quantiles else ERRORS[settings.loss]
    make = partial(build, settings, series[0].values.shape[1], rows.marks.shape[1])
    task = PanelTask(rows, starts, *sizes, error, recipe, make, validated)
    if settings.known:
        refuse_blind(settings, task)
    return task


@torch.no_grad()
def refuse_blind(settings: Settings, task: PanelTask) -> None:
    """Refuse known covariates where a fresh model forecasts the same whatever the future ones are."""
    model = task.model(settings.mixer, settings.seed).eval()
    inputs = task.rows.inputs(task.starts["train"][:1], settings.lookback, settings.horizon)
    before = model(**inputs)
    inputs["future_marks"] = inputs["future_marks"] + 1
    if (model(**inputs) - before).abs().max() < UNMOVED:
        raise ValueError(
            f"known={list(settings.known)}: the model {settings.model!r} reads nothing of the time to forecast, so "
            "covariates that are known ahead are of no use to it; models with a decoder read them"
        )


def train(settings: Settings, task: PanelTask, *, quiet: bool) -> nn.Module:
    """The weights that are best on validation; the last ones where there is none."""
    from matmix.experiments.generators import get_generators, set_generators
    from matmix.experiments.progress import watch
    from matmix.experiments.trainer import Training, only_thread

    before = get_generators()
    try:
        with (
            TemporaryDirectory() as folder,
            watch(f"{settings.model} {settings.mixer}", quiet=quiet) as progress,
            only_thread(),
        ):
            training = Training(Plan(task, settings.mixer, settings.seed), Path(folder), progress, "")
            try:
                training.train(lambda: False)
            finally:
                training.log.close()
            model = training.bare
            if task.validated:
                model.load_state_dict(training.best.weights)
            return model.eval()
    finally:
        set_generators(before)  # what the caller draws does not depend on a fit
