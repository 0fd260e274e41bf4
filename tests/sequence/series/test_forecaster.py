"""The forecaster for own data: what its documentation says of messy tables, units, ends, files and quantiles."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from matmix.experiments import cli
from sequence.series.command import Options
from sequence.series.forecaster import Forecaster
from sequence.series.models import SeriesModel, base
from sequence.series.panel.dates import to_step
from sequence.series.panel.frames import Mended, read
from sequence.series.panel.quantiles import pinball
from sequence.series.panel.settings import Settings
from sequence.series.panel.task import Rows, Scale

SMALL = {"model": "dlinear", "horizon": 4, "lookback": 12, "steps": 12, "kernel": 5}
DAYS = pd.date_range("2024-01-01", periods=120, freq="D")


def wave(length: int, shift: float = 0.0) -> np.ndarray:
    return 10 + shift + np.sin(2 * np.pi * np.arange(length) / 7) + 0.01 * np.arange(length)


def messy() -> pd.DataFrame:
    """Three series of unequal length: one with gaps and an empty value, one out of order with rows that stand twice,
    one that never changes."""
    a = pd.DataFrame({"unique_id": "a", "ds": DAYS, "y": wave(120)}).drop(index=[20, 21, 50, 119 - 5])
    a.loc[30, "y"] = np.nan
    b = pd.DataFrame({"unique_id": "b", "ds": DAYS[30:110], "y": wave(80, 5)})
    b = pd.concat([b, b.iloc[[3, 40]]]).sample(frac=1, random_state=0)
    c = pd.DataFrame({"unique_id": "c", "ds": DAYS[:100], "y": 7.3})
    return pd.concat([a, b, c], ignore_index=True)


def quiet(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Mended)
        return function(*args, **options)


@pytest.fixture(scope="module")
def fitted() -> Forecaster:
    return quiet(Forecaster(**SMALL).fit, messy(), quiet=True)


def test_a_messy_table_is_mended_as_the_documentation_says(fitted):
    with pytest.warns(Mended) as said:
        again = Forecaster(**SMALL).fit(messy(), quiet=True)
    notes = " / ".join(again.notes)
    mended = [str(one.message) for one in said if one.category is Mended]
    assert mended == again.notes == fitted.notes
    assert "series 'a': 5 of 120 values are not there (4 dates and what is empty)" in notes
    assert "series 'b': the dates were not in order" in notes and "'b': 2 rows stand twice, all equal" in notes
    assert "do not change are forecast as they are: c" in notes

    forecast = fitted.predict()
    assert list(forecast.columns) == ["unique_id", "ds", "dlinear"] and forecast["dlinear"].notna().all()
    for name, last in (("a", DAYS[119]), ("b", DAYS[109]), ("c", DAYS[99])):
        part = forecast[forecast["unique_id"] == name]
        assert list(part["ds"]) == list(pd.date_range(last, periods=5, freq="D")[1:])
    assert (forecast[forecast["unique_id"] == "c"]["dlinear"] == 7.3).all()
    pd.testing.assert_frame_equal(forecast, again.predict())  # the same seed

    pd.testing.assert_frame_equal(forecast, quiet(fitted.predict, messy()))
    other = pd.DataFrame({"unique_id": "new", "ds": DAYS, "y": wave(120, 90)})
    assert quiet(fitted.predict, other)["dlinear"].between(80, 120).all()  # by its own history


def test_nothing_behind_the_end_of_a_window_is_in_it():
    """Gaps at the end of a window, before the first value and within: another future changes no input, and a gap within
    is a straight line."""
    values = wave(40)[:, None]
    values[[5, 18, 19, 20, 21, 22]] = np.nan
    values[:2] = np.nan
    changed = values.copy()
    changed[20:] *= 3
    scale, none = Scale(np.array([10.0]), np.array([2.0])), Scale(np.zeros(0), np.zeros(0))
    (part,) = read(pd.DataFrame({"ds": DAYS[:40], "x": wave(40)})).series
    inputs = []
    for each in (values, changed):
        part.values = each
        rows = Rows.of([part], [scale], lambda dates: np.zeros((len(dates), 0)), none)
        inputs.append(rows.inputs(torch.tensor([0, 8]), 12, 4)["x"])
    assert torch.equal(*inputs)
    first, second = inputs[0][..., 0]
    assert (first[:2] == 0).all() and first[5] == pytest.approx((first[4] + first[6]).item() / 2, abs=1e-6)
    assert (second[10:] == second[9]).all() and rows.counts[[5, 18, 22]].sum() == 0


def test_units_and_columns():
    """Forecasts are in the units of the table, whatever these are, and by name."""
    frame = pd.DataFrame({"date": DAYS, "x": wave(120), "z": wave(120, 3)[::-1]})
    one = Forecaster(**SMALL).fit(frame, quiet=True).predict()
    other = frame.assign(x=1000 * frame.x - 5e4)
    two = Forecaster(**SMALL).fit(other, quiet=True).predict()
    x, z = (table.pivot(index="ds", columns="unique_id", values="dlinear") for table in (one, two))
    np.testing.assert_allclose(1000 * x["x"] - 5e4, z["x"], rtol=1e-4)
    np.testing.assert_allclose(x["z"], z["z"], rtol=1e-4)
    zoned = Forecaster(**SMALL).fit(frame.assign(date=frame.date.dt.tz_localize("Europe/Berlin")), quiet=True).predict()
    assert str(zoned["ds"].dt.tz) == "Europe/Berlin"


@pytest.mark.parametrize("refit", [False, True])
def test_cross_validation_is_a_loop(refit):
    frame = pd.DataFrame({"date": DAYS, "x": wave(120), "z": wave(120, 3) ** 2})
    found = Forecaster(**SMALL).cross_validation(frame, windows=2, step=2, refit=refit)
    parts, forecaster = [], Forecaster(**SMALL)
    for end in (114, 116):
        if refit or end == 114:
            forecaster.fit(frame[:end], quiet=True)
        parts.append(forecaster.predict(frame[:end]).assign(cutoff=DAYS[end - 1]))
    expected = pd.concat(parts, ignore_index=True)
    truth = frame.melt("date", var_name="unique_id", value_name="y").rename(columns={"date": "ds"})
    expected = expected.merge(truth, on=["unique_id", "ds"])[found.columns]
    keys = ["cutoff", "unique_id", "ds"]
    pd.testing.assert_frame_equal(
        found.sort_values(keys, ignore_index=True), expected.sort_values(keys, ignore_index=True), check_dtype=False
    )


def test_files_and_quantiles(tmp_path):
    forecaster = quiet(Forecaster(**SMALL, quantiles=(0.9, 0.1)).fit, messy(), quiet=True)
    forecast = forecaster.predict()
    low, middle, high = (forecast[f"dlinear-q{level}"] for level in (0.1, 0.5, 0.9))
    assert (forecast["dlinear"] == middle).all() and (low <= middle).all() and (middle <= high).all()
    changing = forecast["unique_id"] != "c"
    assert (low < high)[changing].all() and (low == high)[~changing].all()
    forecaster.save(tmp_path / "kept")
    names = sorted(file.name for file in (tmp_path / "kept").iterdir())
    assert names == [".matmix", "forecaster.json", "weights.safetensors"]
    loaded = Forecaster.load(tmp_path / "kept")
    pd.testing.assert_frame_equal(loaded.predict(), forecast, check_freq=False)
    assert loaded.settings == forecaster.settings and loaded.notes == forecaster.notes
    assert [axes.get_title() for axes in forecaster.plot(forecast).axes[:3]] == ["a", "b", "c"]
    about = json.loads((tmp_path / "kept" / "forecaster.json").read_text())
    (tmp_path / "kept" / "forecaster.json").write_text(json.dumps({**about, "format": 9}))
    with pytest.raises(ValueError, match=r"forecaster\.json: expected a forecaster as it was saved, but it has"):
        Forecaster.load(tmp_path / "kept")
    (tmp_path / "kept" / ".matmix").unlink()  # of an older version, say, that kept no checksums
    with pytest.raises(ValueError, match="format 9"):
        Forecaster.load(tmp_path / "kept")


def test_the_pinball_loss_is_least_at_the_quantile():
    values = torch.arange(101.0)
    for level, best in ((0.1, 10.0), (0.5, 50.0), (0.9, 90.0)):
        losses = torch.stack([pinball((level,), torch.full((101, 1), float(at)), values).mean() for at in range(101)])
        assert losses.argmin() == best


class Reader(SeriesModel):
    """Forecasts what the last feature of the time is."""

    def __init__(self, *, length, channels, goal="forecast", horizon=0, classes=0, mixer="default", marks=0):
        super().__init__(length=length, channels=channels, goal=goal, horizon=horizon, classes=classes)
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x, marks=None, future_marks=None, *, mask=None, observed=None, start=None):
        return self.factor * future_marks[..., -1:].expand(-1, -1, self.channels)


def test_known_covariates_reach_a_model_that_reads_the_future(monkeypatch):
    monkeypatch.setitem(base._MODELS, "reader", Reader)
    promotion = (np.arange(120) % 5 == 0).astype(float)
    frame = pd.DataFrame({"unique_id": "a", "ds": DAYS, "y": 3 + promotion, "promotion": promotion})
    options = {"horizon": 4, "lookback": 12, "steps": 60, "lr": 0.05, "known": ["promotion"]}
    future = pd.DataFrame({"ds": pd.date_range(DAYS[-1], periods=5, freq="D")[1:], "promotion": [0.0, 1, 0, 1]})
    forecast = Forecaster("reader", **options).fit(frame, quiet=True).predict(future=future)
    np.testing.assert_allclose(forecast["reader"], 3 + future["promotion"], atol=0.1)
    with pytest.raises(ValueError, match="'dlinear' reads nothing of the time to forecast"):
        Forecaster(**{**SMALL, **options}).fit(frame, quiet=True)
    with pytest.raises(ValueError, match="future has no covariates of 'a' at 2024-05-02"):
        Forecaster("reader", **options).fit(frame, quiet=True).predict(future=future[:2])


LONG = pd.DataFrame({"unique_id": "a", "ds": DAYS, "y": wave(120)})
WIDE = pd.DataFrame({"date": DAYS, "x": wave(120)})
REFUSED = {
    "no dates": (WIDE.rename(columns={"date": "when"}), {}, "must have one column of dates"),
    "numbers as dates": (WIDE.assign(date=range(120)), {}, "must be dates, got numbers"),
    "an empty date": (WIDE.assign(date=[None, *DAYS[1:]]), {}, "no date in row 0"),
    "no date": (WIDE.assign(date=["2024-01-01", "soon", *map(str, DAYS[2:])]), {}, "row 1, but 'soon'"),
    "mixed zones": (
        WIDE.assign(date=[f"{day:%Y-%m-%d}T00:00+0{1 + (day.month > 2)}:00" for day in DAYS]), {}, "several time zones",
    ),
    "naive and aware": (
        WIDE.assign(date=[str(day.tz_localize("UTC") if day.month > 2 else day) for day in DAYS]), {}, "several time",
    ),
    "text": (WIDE.assign(x="1,5"), {}, "column 'x' is not of numbers"),
    "infinite": (WIDE.assign(x=[np.inf, *wave(119)]), {}, "infinite in row 0"),
    "all empty": (WIDE.assign(z=np.nan), {}, "no value at all in series z"),
    "long without y": (LONG.drop(columns="y"), {}, "no column y"),
    "a column of nobody": (LONG.assign(price=1.0), {}, "nothing is said of: price"),
    "no such covariate": (LONG, {"known": ["price"]}, "no column 'price'"),
    "no step": (WIDE[:3].assign(date=DAYS[[0, 1, 6]]), {}, "no regular step"),
    "off the step": (WIDE.assign(date=[*DAYS[:50], *(DAYS[50:] + pd.Timedelta("1h"))]), {}, "70 of 120 dates are"),
    "gaps": (WIDE.drop(index=40), {"gaps": "error"}, "1 of 120 values are not there .*2024-02-10"),
    "two values": (pd.concat([WIDE, WIDE[:2].assign(x=0.0)]), {}, "2 dates come twice with different values"),
    "too short": (pd.concat([LONG, LONG[:15].assign(unique_id="b")]), {}, "'b' has 15 steps"),
    "too short, all": (LONG[:15], {"short": "drop"}, "'a' has 15 steps"),
    "constant": (LONG.assign(y=1.0), {}, "no series changes"),
    "rows": (WIDE[:0], {}, "must be a pandas table with rows"),
    "a size": (WIDE, {"kernell": 3}, "kernell"),
    "a quantile": (WIDE, {"quantiles": (0.1, 1.5)}, r"quantiles must be a tuple, each a finite number in \[0, 1\]"),
    "a setting": (WIDE, {"horizon": 0}, "Settings.horizon"),
    "a model": (WIDE, {"model": "dlinaer"}, "dlinear"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused(name):
    frame, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        quiet(lambda: Forecaster(**{**SMALL, **options}).fit(frame, quiet=True))


def test_treatments_that_are_asked_for():
    double = pd.concat([WIDE, WIDE[:2].assign(x=0.0)])
    for how, expected in (("mean", wave(1)[0] / 2), ("first", wave(1)[0]), ("last", 0.0)):
        assert read(double, duplicates=how).series[0].values[0, 0] == expected
    assert Forecaster(**SMALL, val_size=0).fit(WIDE, quiet=True).notes == []  # the last weights, as asked for
    late = quiet(read, LONG.assign(y=[np.nan] * 3 + list(wave(117))).drop(index=[1, 50]))
    assert "1 of 117 values are not there (1 dates" in late.notes[0] and late.series[0].dates[0] == DAYS[3]
    short = pd.concat([LONG, LONG[:15].assign(unique_id="b")])
    forecaster = quiet(Forecaster(**SMALL, short="drop").fit, short, quiet=True)
    assert set(forecaster.predict()["unique_id"]) == {"a"} and "left out: b" in " ".join(forecaster.notes)
    months = read(WIDE.assign(date=pd.date_range("2000-01-31", periods=120, freq=to_step("M"))))
    assert months.freq == to_step("ME") == to_step("M") and to_step("2H") == to_step("2h")
    side = read(pd.concat([LONG, LONG[10:100].assign(unique_id="b")]), together=True).series
    assert side[0].names == ("a", "b") and np.isnan(side[0].values[:10, 1]).all() and len(side) == 1
    apart = read(WIDE.assign(z=1.0), together=False).series
    assert [one.names for one in apart] == [("x",), ("z",)]


def test_the_command_has_every_setting():
    """But the sizes of a model, which its name says there."""
    names = [one.name for one in dataclasses.fields(Settings) if one.name != "sizes"]
    other = {
        "model": "dlinear", "mixer": "pooling", "freq": "D", "known": ("price",), "together": True, "gaps": "error",
        "duplicates": "mean", "short": "drop", "quantiles": (0.1, 0.5), "loss": "mae",
    }  # fmt: skip
    given = {**{name: 90 + at for at, name in enumerate(names)}, **other}
    settings = Options(out=Path("x.csv"), **given).forecaster().settings
    assert {name: getattr(settings, name) for name in names} == given


def test_the_command(tmp_path, capsys):
    WIDE.drop(index=40).to_csv(tmp_path / "own.csv", index=False)
    words = f"forecast {tmp_path}/own.csv --horizon 4 --lookback 12 --model dlinear(kernel=5) --steps 5 --quiet"
    with pytest.raises(SystemExit) as done:
        cli.main([*words.split(), "--out", f"{tmp_path}/forecast.csv", "--plot", f"{tmp_path}/forecast.png"])
    out, error = capsys.readouterr()
    assert done.value.code == 0, error
    assert "note: series 'x': 1 of 120 values are not there" in out and (tmp_path / "forecast.png").stat().st_size
    written = pd.read_csv(tmp_path / "forecast.csv")
    assert list(written.columns) == ["unique_id", "ds", "dlinear"] and len(written) == 4
    with pytest.raises(SystemExit) as done:
        cli.main(["forecast", f"{tmp_path}/absent.csv", "--horizon", "4", "--out", "x.csv"])
    assert done.value.code == 2 and "there is no file" in capsys.readouterr().err


@pytest.mark.slow
def test_forecasts_of_co2_beat_seasonal_naive():
    """The last four half years, 26 weeks each, trained once on what was before; 59 weeks were not measured."""
    pytest.importorskip("utilsforecast")
    from statsmodels.datasets import co2

    from sequence.series.panel.scores import scores, with_seasonal_naive

    frame = co2.load_pandas().data.rename_axis("date").reset_index()
    forecaster = Forecaster("dlinear", horizon=26, lookback=104, steps=300, quantiles=(0.1, 0.9))
    table = quiet(forecaster.cross_validation, frame, windows=4)
    history = quiet(forecaster.history, frame)
    found = scores(with_seasonal_naive(table, history, 52), history[history["ds"] < table["ds"].min()], 52)
    found = found.set_index("metric")
    assert (
        found.loc[["mae", "rmse", "mase"], "dlinear"] < 0.7 * found.loc[["mae", "rmse", "mase"], "seasonal-naive"]
    ).all()
    # The CRPS of a forecast without doubt is its absolute error, relative to the mean of the truth as this one is.
    assert found.loc["scaled_crps", "dlinear"] < found.loc["mae", "dlinear"] / table["y"].mean()
