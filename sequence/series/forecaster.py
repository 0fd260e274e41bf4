"""Forecasts for a table of one's own, in its units.

    forecaster = Forecaster(model="itransformer", mixer="hydra", horizon=24, lookback=96).fit(frame)
    forecast = forecaster.predict()  # unique_id, ds, itransformer

A wide table has a column of dates and one column a series, which a model reads together; a long one has `unique_id`,
`ds` and `y`, as NeuralForecast has it, and one model forecasts each series by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from matmix.arguments import checking_arguments
from matmix.ranges import Place
from sequence.series.data.marks import frequency_of, marks
from sequence.series.panel import files
from sequence.series.panel.dates import to_dates
from sequence.series.panel.files import Kept
from sequence.series.panel.frames import Duplicates, Gaps, Panel, Series, read, say
from sequence.series.panel.settings import Settings
from sequence.series.panel.task import Scale, split
from sequence.series.panel.training import build, rows_of, task_of, train


class Forecaster:
    """Train a model on the series of a table, and forecast what comes after them.

    Args:
        model: a name of `list_series_models()`.
        mixer: the spec of what mixes tokens in it; "default" is the published one.
        horizon: steps to forecast.
        lookback: steps that are read for it.
        freq: step of the dates, as pandas has it ("h", "D", "MS"); None finds it.
        known: columns that are known for the time to forecast too (a price, a holiday). They stand beside the time
            features; a model that reads nothing of the future refuses them.
        together: whether the series stand side by side as the channels of one model, or each by itself as examples of
            one with a single channel. None: together in a wide table, by themselves in a long one.
        gaps: "fill" or "error", where dates or values are absent.
        duplicates: "error", or what counts where a date comes twice with different values: "mean", "first", "last".
        short: what to do with a series that has no room for a window: "error", or "drop" leaves it out.
        quantiles: levels between 0 and 1 to forecast besides; the forecast itself is the median then.
        loss: "mse" or "mae"; with quantiles it is the pinball loss.
        val_size: steps at the end of each series that only choose when to stop; 0 trains on all and keeps the last
            weights. None: the horizon or a tenth of the series, whichever is longer, where that leaves room to train.
        steps: updates of the weights, at most.
        batch_size, lr: of the training.
        patience: stop after so many evaluations, one every 50 steps, without a better one; 0 = never.
        seed: of weights and order.
        sizes: options of the model, such as `dim=64`.

    Raises:
        ValueError: for a setting that is out of range.
    """

    def __init__(
        self,
        model: str = "itransformer",
        mixer: str = "default",
        *,
        horizon: int = 96,
        lookback: int = 96,
        freq: str | None = None,
        known: Sequence[str] = (),
        together: bool | None = None,
        gaps: Gaps = "fill",
        duplicates: Duplicates = "error",
        short: Literal["error", "drop"] = "error",
        quantiles: Sequence[float] = (),
        loss: Literal["mse", "mae"] = "mse",
        val_size: int | None = None,
        steps: int = 500,
        batch_size: int = 32,
        lr: float = 1e-3,
        patience: int = 5,
        seed: int = 0,
        **sizes: Any,
    ) -> None:
        self.settings = Settings(
            model, mixer, horizon, lookback, freq, tuple(known), together, gaps, duplicates, short, tuple(quantiles),
            loss, val_size, steps, batch_size, lr, patience, seed, sizes,
        )  # fmt: skip
        self.notes: list[str] = []
        """What was mended in the table of the last `fit`."""
        self.module: nn.Module | None = None
        """The trained model; with quantiles it stands in a `WithQuantiles`."""
        self.panel: Panel | None = None
        self.scales: dict[tuple[str, ...], Scale] = {}
        self.covariates = Scale(np.zeros(0), np.ones(0))

    # ------------------------------------------------------------------ training

    def fit(self, frame: pd.DataFrame, *, quiet: bool = False) -> Forecaster:
        """Train on a table. What had to be mended in it is in `notes`, and a warning each.

        Raises:
            ValueError: for a table that cannot be read, or has no window to train on.
        """
        return self._fit(self._read(frame), quiet)

    def _read(self, frame: pd.DataFrame, freq: str | None = None) -> Panel:
        s = self.settings
        panel = read(
            frame, freq=freq or s.freq, known=s.known, together=s.together, gaps=s.gaps, duplicates=s.duplicates
        )
        say(panel.notes)
        return panel

    def _fit(self, panel: Panel, quiet: bool) -> Forecaster:
        s, self.notes = self.settings, list(panel.notes)
        panel = dataclasses.replace(panel, series=self._long_enough(panel.series, s.lookback + s.horizon))
        held_out = [self._held_out(len(one.dates)) for one in panel.series]
        ends = [len(one.dates) - out for one, out in zip(panel.series, held_out, strict=True)]
        scales = [Scale.of(one.values[:end]) for one, end in zip(panel.series, ends, strict=True)]
        self._tell_constant(panel.series, scales)
        self.panel = panel
        self.scales = {one.names: scale for one, scale in zip(panel.series, scales, strict=True)}
        self.covariates = Scale.of(
            np.concatenate([one.known[:end] for one, end in zip(panel.series, ends, strict=True)])
        )
        task = task_of(s, panel.series, scales, self.covariates, held_out)
        if not task.validated and s.val_size != 0:
            self.notes.append("no series has room for validation: the last weights are kept")
            say(self.notes[-1:])
        self.module = train(s, task, quiet=quiet)
        return self

    def _long_enough(self, series: list[Series], needed: int) -> list[Series]:
        """Those that have so many steps.

        Raises:
            ValueError: for a shorter one, unless it may be left out, or where none is left.
        """
        short = {one.names[0]: len(one.dates) for one in series if len(one.dates) < needed}
        kept = [one for one in series if len(one.dates) >= needed]
        if short and (self.settings.short == "error" or not kept):
            name = min(short, key=lambda each: short[each])
            raise ValueError(
                f"{len(short)} of {len(series)} series are too short, {name!r} has {short[name]} steps; lookback="
                f"{self.settings.lookback} and horizon={self.settings.horizon} need {needed}; short='drop' leaves such "
                "series out"
            )
        if short:
            note = f"{len(short)} series of less than {needed} steps are left out: {', '.join(short)}"
            self.notes += [note] if note not in self.notes else []
            say([note])
        return kept

    def _held_out(self, length: int) -> int:
        s = self.settings
        wanted = max(s.horizon, length // 10) if s.val_size is None else s.val_size
        return wanted if len(split(length, s.lookback, s.horizon, wanted)[0]) else 0

    def _tell_constant(self, series: list[Series], scales: list[Scale]) -> None:
        pairs = zip(series, scales, strict=True)
        flat = [name for one, scale in pairs for name, std in zip(one.names, scale.std, strict=True) if std == 0]
        if flat:
            self.notes.append(f"series that do not change are forecast as they are: {', '.join(flat)}")
            say(self.notes[-1:])
        if all((scale.std == 0).all() for scale in scales):
            raise ValueError(f"no series changes, so there is nothing to learn: {', '.join(flat)}")

    # ------------------------------------------------------------------ forecasts

    def predict(self, frame: pd.DataFrame | None = None, *, future: pd.DataFrame | None = None) -> pd.DataFrame:
        """Forecasts of the `horizon` steps after the end of each series: unique_id, ds, a column with the name of the
        model, and one a quantile such as `itransformer-q0.9`.

        Args:
            frame: another history to go on from; None is the table of `fit`. Side by side they are the same series;
                by themselves others too, which are scaled by their own history.
            future: the known covariates of the steps to forecast: ds, their columns, and unique_id where series stand
                by themselves.

        Raises:
            ValueError: before `fit`; for a history that is shorter than the lookback; for covariates that are absent.
        """
        panel = self.fitted if frame is None else self._read(frame, self.fitted.freq.freqstr)
        return self._predict(panel, future)

    @property
    def fitted(self) -> Panel:
        """The series that the model was trained on, as they were read."""
        if self.panel is None or self.module is None:
            raise ValueError("the forecaster has not been trained: call fit(frame) first")
        return self.panel

    def _scale(self, one: Series) -> Scale:
        if one.names in self.scales:
            return self.scales[one.names]
        if len(one.names) > 1 or any(len(names) > 1 for names in self.scales):
            ours = next(iter(self.scales))
            raise ValueError(f"the series must be {', '.join(ours)} as in fit, got {', '.join(one.names)}")
        return Scale.of(one.values)

    @torch.no_grad()
    def _predict(self, panel: Panel, future: pd.DataFrame | None) -> pd.DataFrame:
        s, module = self.settings, self.module
        assert module is not None
        series = self._long_enough(panel.series, s.lookback)
        scales = [self._scale(one) for one in series]
        longer = [self._lengthen(one, panel.freq, future) for one in series]
        rows = rows_of(longer, scales, self.covariates)
        ends = [begin + len(one.dates) for begin, one in zip(rows.begins, longer, strict=True)]
        starts = torch.tensor(ends) - s.horizon - s.lookback
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        found = []
        for at in starts.split(256):
            inputs = rows.inputs(at, s.lookback, s.horizon)
            found.append(module(**{name: value.to(device) for name, value in inputs.items()}).double().cpu())
        output = torch.cat(found).numpy()
        tables = [self._table(one, scale, values) for one, scale, values in zip(longer, scales, output, strict=True)]
        return pd.concat(tables, ignore_index=True)

    def _table(self, one: Series, scale: Scale, values: np.ndarray) -> pd.DataFrame:
        """Forecasts of the series that end at the end of the horizon, in their units, one below the other."""
        s = self.settings
        levels = values if s.quantiles else values[..., None]
        columns = {"unique_id": np.repeat(one.names, s.horizon), "ds": one.dates[-s.horizon :].append(
            [one.dates[-s.horizon :]] * (len(one.names) - 1))}  # fmt: skip
        units = np.stack([scale.undo(levels[..., q]) for q in range(levels.shape[-1])], -1)
        middle = s.quantiles.index(0.5) if s.quantiles else 0
        names = {s.model: middle, **{f"{s.model}-q{level:g}": q for q, level in enumerate(s.quantiles)}}
        return pd.DataFrame({**columns, **{name: units[..., q].T.ravel() for name, q in names.items()}})

    def _lengthen(self, one: Series, freq: Any, future: pd.DataFrame | None) -> Series:
        """The series with the horizon behind it, where nothing is observed yet."""
        s = self.settings
        ahead = pd.date_range(one.dates[-1], periods=s.horizon + 1, freq=freq)[1:]
        nothing = np.full((s.horizon, len(one.names)), np.nan)
        known = self._future(one, ahead, future) if s.known else np.zeros((s.horizon, 0))
        return Series(
            one.names,
            one.dates.append(ahead),
            np.concatenate([one.values, nothing]),
            np.concatenate([one.known, known]),
        )

    def _future(self, one: Series, ahead: pd.DatetimeIndex, future: pd.DataFrame | None) -> np.ndarray:
        s = self.settings
        absent = [name for name in ("ds", *s.known) if future is None or name not in future.columns]
        if future is None or absent:
            raise ValueError(
                f"future must be a table with {', '.join(('ds', *s.known))} for the steps to forecast"
                + ("" if future is None else f"; it has no {', '.join(absent)}")
            )
        if len(one.names) == 1 and "unique_id" in future.columns:
            future = future[future["unique_id"].astype(str) == one.names[0]]
        table = future[list(s.known)].set_axis(to_dates(future["ds"], "future.ds"), axis=0).astype(np.float64)
        table = table[~table.index.duplicated()].reindex(ahead)
        if table.isna().any().any():
            first = ahead[int(np.argmax(table.isna().any(axis=1)))]
            raise ValueError(f"future has no covariates of {one.names[0]!r} at {first}, of {ahead[0]} to {ahead[-1]}")
        return table.to_numpy()

    def history(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A table as the forecaster reads it, long: unique_id, ds, y, each date once, NaN where nothing is known."""
        parts = [
            pd.DataFrame({"unique_id": name, "ds": one.dates, "y": values})
            for one in self._read(frame).series
            for name, values in zip(one.names, one.values.T, strict=True)
        ]
        return pd.concat(parts, ignore_index=True)

    def cross_validation(
        self, frame: pd.DataFrame, *, windows: int = 3, step: int | None = None, refit: bool = False,
        quiet: bool = True,
    ) -> pd.DataFrame:  # fmt: skip
        """Forecasts from several ends of the history, with what came: unique_id, ds, cutoff, y, and the columns of
        `predict`. `cutoff` is the last date that was read; y is NaN where nothing was observed. The forecaster is then
        what it was trained to last: call `fit` for forecasts of what comes.

        Args:
            frame: the whole history.
            windows: how many ends; the last horizon ends with the series.
            step: steps between ends; None is the horizon.
            refit: train anew for each end; otherwise once, on what the first of them knows.
            quiet: print nothing.
        """
        s = self.settings
        step = s.horizon if step is None else step
        if windows < 1 or step < 1:
            raise ValueError(f"windows and step must be at least 1, got {windows} and {step}")
        whole, found = self._read(frame), []
        for window in range(windows):
            back = s.horizon + (windows - 1 - window) * step
            past = dataclasses.replace(whole, series=[one.before(len(one.dates) - back) for one in whole.series])
            if refit or window == 0:
                self._fit(past, quiet)
            found.append(self._compared(whole, past, back))
        return pd.concat(found, ignore_index=True)

    def _compared(self, whole: Panel, past: Panel, back: int) -> pd.DataFrame:
        """Forecasts from one end, and what came."""
        s, parts, futures = self.settings, [], []
        for full, one in zip(whole.series, past.series, strict=True):
            if len(one.dates) < s.lookback:  # refused by now, or to be left out
                continue
            at = slice(len(full.dates) - back, len(full.dates) - back + s.horizon)
            for name, values in zip(full.names, full.values[at].T, strict=True):
                parts.append(
                    pd.DataFrame({"unique_id": name, "ds": full.dates[at], "cutoff": one.dates[-1], "y": values})
                )
                known = dict(zip(s.known, full.known[at].T, strict=True))
                futures.append(pd.DataFrame({"unique_id": name, "ds": full.dates[at], **known}))
        forecast = self._predict(past, pd.concat(futures) if s.known else None)
        return pd.concat(parts).merge(forecast, on=["unique_id", "ds"], how="inner")

    # ------------------------------------------------------------------ files and pictures

    def save(self, folder: Path | str) -> None:
        """Write settings, weights and the end of the history into a folder, as json and safetensors."""
        panel, module = self.fitted, self.module
        assert module is not None
        kept = Kept(self.settings, panel, self.scales, self.covariates, self.notes, module.state_dict())
        files.save(kept, Path(folder))

    @classmethod
    @checking_arguments()
    def load(cls, folder: Path | Place) -> Forecaster:
        """The forecaster that `save` wrote, on the CPU: `predict()` gives the same.

        Raises:
            ValueError: where the folder holds none.
        """
        kept, made = files.load(Path(folder)), cls()
        made.settings, made.panel, made.scales, made.covariates, made.notes, weights = kept
        series = kept.panel.series
        frequency = frequency_of(max((one.dates for one in series), key=len))
        features = marks(series[0].dates[:1], frequency).shape[1] + series[0].known.shape[1]
        made.module = build(kept.settings, series[0].values.shape[1], features, kept.settings.mixer)
        made.module.load_state_dict(weights)
        made.module.eval()
        return made

    def plot(
        self, forecast: pd.DataFrame, out: Path | str | None = None, *, steps: int | None = None,
        names: list[str] | None = None,
    ) -> Any:  # fmt: skip
        """A matplotlib figure of forecasts behind the end of the history.

        Args:
            forecast: of `predict()`.
            out: picture to write; its ending picks the format (png, svg, pdf).
            steps: of the history; None is three times the horizon.
            names: the series to draw; None is the first twelve.
        """
        from sequence.series.panel.plot import draw

        steps = 3 * self.settings.horizon if steps is None else steps
        return draw(self.fitted, forecast, self.settings.model, steps, names, None if out is None else Path(out))
