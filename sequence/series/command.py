"""The command `matmix forecast`: from a csv file to forecasts, a picture, and how good such forecasts were so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from matmix.ranges import Count, Positive, Seed, Share, Whole
from matmix.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

    from sequence.series.forecaster import Forecaster


@dataclass(frozen=True, kw_only=True)
class Options(Settings):
    """Options of the command; `sequence.series.forecaster.Forecaster` says more about each."""

    horizon: Count
    """Steps to forecast."""
    out: Path
    """The csv file to write: unique_id, ds and the forecasts."""
    plot: Path | None = None
    """Picture of forecasts and history to write; its ending picks the format (png, svg, pdf)."""
    lookback: Count = 96
    """Steps that are read for a forecast."""
    model: str = "itransformer"
    """A time-series model, as a name or with its sizes: "itransformer(dim=128, depth=2)"."""
    mixer: str = "default"
    """Spec of what mixes tokens in it; "default" is the published one."""
    test: Whole = 0
    """Before that, forecast the last horizons of the file, so many, from what was before, and print the errors beside
    those of the last season repeated."""
    season: Whole = 0
    """Steps of that season; 0 = by the step of the dates: a day, a week or a year."""
    quantiles: tuple[Share, ...] = ()
    """Levels to forecast besides, such as 0.1 0.9."""
    known: tuple[str, ...] = ()
    """Columns that are known ahead."""
    future: Path | None = None
    """csv file with `ds` and those columns, for the steps to forecast."""
    freq: str | None = None
    """Step of the dates, such as h, D or MS; absent: found."""
    together: bool | None = None
    """Whether all series are read together; absent: those of a wide file are, those of a long one are not."""
    gaps: Literal["fill", "error"] = "fill"
    """What to do where dates or values are absent."""
    duplicates: Literal["error", "mean", "first", "last"] = "error"
    """What counts where a date comes twice with different values."""
    short: Literal["error", "drop"] = "error"
    """What to do with a series that has no room for a window."""
    val_size: Whole | None = None
    """Steps at the end of each series that choose when to stop; absent: a tenth, or the horizon."""
    loss: Literal["mse", "mae"] = "mse"
    """What to minimise, where there are no quantiles."""
    steps: Count = 500
    """Updates of the weights, at most."""
    batch_size: Count = 32
    """Windows of an update."""
    lr: Positive = 1e-3
    """Highest learning rate."""
    patience: Whole = 5
    """Stop after so many evaluations, one every 50 steps, without a better one; 0 = never."""
    seed: Seed = 0
    """Of weights and order."""
    save: Path | None = None
    """Folder to keep the trained forecaster in, for `Forecaster.load`."""
    quiet: bool = False
    """Print no progress."""

    def forecaster(self) -> Forecaster:
        from matmix.experiments.models import read
        from sequence.series.forecaster import Forecaster

        _, model, sizes = read(self.model)
        return Forecaster(
            model, self.mixer, horizon=self.horizon, lookback=self.lookback, freq=self.freq, known=self.known,
            together=self.together, gaps=self.gaps, duplicates=self.duplicates, short=self.short,
            quantiles=self.quantiles, loss=self.loss, val_size=self.val_size, steps=self.steps,
            batch_size=self.batch_size, lr=self.lr, patience=self.patience, seed=self.seed,
            **sizes,
        )  # fmt: skip


def forecast(words: Sequence[str]) -> int:
    """Forecast the series of a csv file, wide (a date and columns) or long (unique_id, ds, y).

    Name the file first: matmix forecast FILE.csv --horizon 24 --out forecast.csv --plot forecast.png. What had to be
    mended in it (gaps, order) is said; what cannot be read is refused. `--import FILE` names Python files or modules to
    import first; they register mixers or models.
    """

    from matmix.experiments.cli_options import subject
    from matmix.experiments.cli_words import read as read_words

    about = getdoc(forecast)
    name, rest = subject(words, "forecast", "file", Options, about)
    run(Path(name), read_words(Options, rest, prog=f"matmix forecast {name}", about=about))
    return 0


def run(file: Path, options: Options) -> None:
    """Train, forecast, write."""
    import warnings

    from sequence.series.panel.frames import Mended

    frame, future = _read(file), None if options.future is None else _read(options.future)
    forecaster = options.forecaster()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Mended)  # they are printed
        if options.test:
            print(_tested(frame, options))
        forecaster.fit(frame, quiet=options.quiet)
        forecast = forecaster.predict(future=future)
    for note in forecaster.notes:
        print(f"note: {note}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    forecast.to_csv(options.out, index=False)
    print(f"{options.out}: {forecast['unique_id'].nunique()} series, {forecast['ds'].min()} to {forecast['ds'].max()}")
    if options.plot is not None:
        forecaster.plot(forecast, options.plot)
        print(options.plot)
    if options.save is not None:
        forecaster.save(options.save)
        print(options.save)


def _read(file: Path) -> pd.DataFrame:
    import pandas as pd

    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    try:
        return pd.read_csv(file)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no csv file that pandas reads: {error}") from error


def _tested(frame: pd.DataFrame, options: Options) -> str:
    """Errors of forecasts of the last horizons, by series."""
    from sequence.series.data.marks import season_of
    from sequence.series.panel.scores import scores, with_seasonal_naive

    forecaster = options.forecaster()
    table = forecaster.cross_validation(frame, windows=options.test, quiet=options.quiet)
    history = forecaster.history(frame)
    season = options.season or season_of(max((one.dates for one in forecaster.fitted.series), key=len))
    before = history[history["ds"] <= table["cutoff"].min()]
    found: Any = scores(with_seasonal_naive(table, history, season), before, season)
    found["series"] = found.pop("unique_id")
    mean = found.groupby("metric", sort=False).mean(numeric_only=True).reset_index().assign(series="mean")
    whole = mean if found["series"].nunique() > 8 else found
    shown = whole[["series", *(name for name in whole.columns if name != "series")]]
    return f"the last {options.test} horizons, season {season}:\n{shown.to_string(index=False, float_format='%.4g')}"
