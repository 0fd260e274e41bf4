"""Files of series: what is read, what is refused, and the published splits, scaling and windows to the digit."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sequence.data.faults import BadData
from sequence.series.data.marks import features, frequency_of, marks, season_of
from sequence.series.data.sets import SETS, known, load
from sequence.series.data.table import read_table
from sequence.series.data.windows import Scaler, Windows, borders, epochs, forecast_begins, shuffled_once
from tests.fixtures import load_fixture
from tests.sequence.series.tables import write

DATA = Path(os.environ.get("MATMIX_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
SPLITS = ("train", "val", "test")


def published(name: str) -> dict[str, Any]:
    data: dict[str, Any] = load_fixture(f"time_series/{name}").data
    return data


# ------------------------------------------------------------------ the published protocol


@pytest.mark.parametrize("name", ["ETTh1", "ETTm1", "exchange_rate", "weather"])
def test_published_windows(name: str) -> None:
    """Counts, first and last windows of every split, scaler and features of time of the published loaders."""
    found = known(name)
    assert found is not None
    fixture = published(f"data_protocol_{name}")
    length, horizon, label = fixture["seq_len"], fixture["pred_len"], fixture["label_len"]
    spans = borders(found.rows, found.months)
    counts = {split: len(forecast_begins(spans[split], length, horizon)) for split in SPLITS}
    assert counts == {split: part["samples"] for split, part in fixture["splits"].items()}
    if not any((DATA / folder).is_dir() for folder in found.folders):
        pytest.skip(f"{DATA} has no {found.file}: set MATMIX_DATA to the folder that does")
    table = load(found.name, str(DATA))
    assert list(table.columns) == fixture.get("columns", list(table.columns)) and table.columns[-1] == "OT"
    scaler = Scaler.of(table.values[slice(*spans["train"])])
    np.testing.assert_allclose(scaler.mean, fixture["scaler"]["mean"], rtol=1e-9)
    np.testing.assert_allclose(scaler.std, fixture["scaler"]["std"], rtol=1e-9)
    values, times = torch.from_numpy(scaler.scale(table.values)), torch.from_numpy(marks(table.dates, "h"))
    for split, part in fixture["splits"].items():
        windows = Windows(values, times, length, horizon, forecast_begins(spans[split], length, horizon))
        for entry, at in (("first", 0), ("last", len(windows) - 1)):
            x, future, x_marks, future_marks = (one[0] for one in windows.take(torch.tensor([at])))
            expected = part["windows"][entry]
            y, y_marks = torch.cat((x[-label:], future)), torch.cat((x_marks[-label:], future_marks))
            for key, ours in {
                "x_first_row": x[0], "x_last_row": x[-1], "y_first_row": y[0], "y_last_row": y[-1], "x_mean": x.mean(),
                "y_mean": y.mean(), "x_mark_first_row": x_marks[0], "y_mark_last_row": y_marks[-1],
            }.items():  # fmt: skip
                if key in expected:
                    np.testing.assert_allclose(ours.numpy(), expected[key], rtol=1e-9, atol=1e-11, err_msg=key)


def test_published_features_of_time() -> None:
    found = published("protocol_metrics")["time_features"]
    dates = pd.DatetimeIndex(found["dates"])
    ours = {"b": "d", "15min": "t"}
    for alias in found["alias_passed_to_pandas"]:
        frequency = ours.get(alias, alias)
        got = marks(dates, frequency)  # type: ignore[arg-type]
        np.testing.assert_allclose(got, found[alias], atol=1e-11, err_msg=alias)
        assert got.shape[1] == len(features(frequency))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step", "frequency", "season"),
    [("10s", "s", 8640), ("15min", "t", 96), ("h", "h", 24), ("D", "d", 7), ("B", "d", 7), ("7D", "w", 52),
     ("MS", "m", 12), ("QS", "m", 4)],
)  # fmt: skip
def test_frequencies(step: str, frequency: str, season: int) -> None:
    dates = pd.date_range("2016-07-01", periods=50, freq=step)
    assert frequency_of(dates) == frequency and season_of(dates) == season


# ------------------------------------------------------------------ who reads which rows


@pytest.mark.parametrize(("rows", "months"), [(500, 0), (500, 20), (966, 0)])
def test_targets_of_splits_never_overlap(rows: int, months: int) -> None:
    spans = borders(rows, months)
    seen: dict[str, set[int]] = {}
    for split in SPLITS:
        begins = forecast_begins(spans[split], 12, 5)
        seen[split] = {row for begin in begins for row in range(begin + 12, begin + 17)}
        first, end = spans[split]
        assert seen[split] == set(range(max(first, 12), end)) and min(begins) >= 0
    assert not (seen["train"] & seen["val"] or seen["val"] & seen["test"] or seen["train"] & seen["test"])


def test_windows_are_cut_out_of_one_array() -> None:
    values, times = torch.arange(60.0).view(20, 3), torch.arange(20.0).view(20, 1)
    windows = Windows(values, times, 4, 2, range(3, 10))
    x, y, _, future_marks = windows.take(torch.tensor([0, 6]))
    assert torch.equal(x[1], values[9:13]) and torch.equal(y[1], values[13:15])
    assert torch.equal(x[0], values[3:7]) and torch.equal(future_marks[0], times[7:9]) and len(windows) == 7


def test_units_round_trip() -> None:
    rows = np.random.default_rng(0).normal(50, [1, 20, 0], (30, 3))
    scaler = Scaler.of(rows)
    np.testing.assert_allclose(scaler.restore(scaler.scale(rows)), rows, rtol=1e-12)
    assert scaler.std[2] == 1 and abs(scaler.scale(rows)[:, :2].std(0) - 1).max() < 1e-12


def test_orders() -> None:
    """An epoch has every window, its last batch is short; a resumed run sees the same; ranks share a batch."""
    order = epochs(10, 4, seed=1)
    first = [next(order) for _ in range(6)]
    assert [len(at) for at in first] == [4, 4, 2] * 2
    assert sorted(torch.cat(first[:3]).tolist()) == sorted(torch.cat(first[3:]).tolist()) == list(range(10))
    assert torch.equal(next(epochs(10, 4, seed=1, start=4)), first[4]) and not torch.equal(first[0], first[3])
    assert torch.equal(next(epochs(10, 4, seed=1, start=4, rank=1, world=2)), first[4][1::2])
    for seed in (1, 2):
        once = list(shuffled_once(10, 4, seed=seed))
        assert sorted(torch.cat([at for at, _ in once]).tolist()) == list(range(10)) and once[-1][1] == 2
    assert not torch.equal(once[0][0], next(shuffled_once(10, 4, seed=1))[0])


# ------------------------------------------------------------------ files


def test_a_csv_of_ones_own(tmp_path: Path) -> None:
    """Plain or packed, with a byte-order mark, in latin-1, with any name for its dates; the target goes last."""
    plain = write(tmp_path / "own.csv")
    table = load(str(plain))
    assert table.columns == ("a", "b", "OT") and table.values.shape == (400, 3) and not table.facts
    assert load(str(plain), target="a").columns == ("OT", "b", "a")
    text = plain.read_text().replace("date", "Timestamp", 1)
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress("\ufeff".encode() + text.encode()))
    np.testing.assert_array_equal(load(str(packed)).values, table.values)
    odd = tmp_path / "odd.csv"
    odd.write_bytes(text.replace(",a,", ",T (\u00b0C),").encode("latin-1"))
    found = read_table(odd)
    assert found.columns[0] == "T (°C)" and found.facts == {"encoding": "latin-1"}
    lines = plain.read_text().splitlines()
    gap = tmp_path / "gap.csv"
    gap.write_text("\n".join([*lines[:10], *lines[12:20], lines[19], *lines[20:]]))
    assert read_table(gap).facts == {"usual step": "0 days 01:00:00", "time stamps that stand twice": 1, "gaps": 1}


def broken(kind: str, file: Path) -> None:
    lines = write(file).read_text().splitlines()
    cells = lines[7].split(",")
    if kind == "no date":
        lines[0] = lines[0].replace("date", "when")
    elif kind == "text":
        lines[7] = ",".join([*cells[:2], "n/a?", *cells[3:]])
    elif kind == "empty":
        lines[7] = ",".join([*cells[:2], "", *cells[3:]])
    elif kind == "bad date":
        lines[7] = ",".join(["soon", *cells[1:]])
    elif kind == "numbers for dates":
        lines[1:] = [f"{index},{line.partition(',')[2]}" for index, line in enumerate(lines[1:])]
    elif kind == "back":
        lines[7], lines[8] = lines[8], lines[7]
    elif kind == "two zones":
        lines[7] = ",".join([f"{cells[0]}+02:00", *cells[1:]])
    elif kind == "columns":
        lines[7] += ",1"
    elif kind == "nothing":
        lines = [""]
    elif kind == "pointer":
        lines = ["version https://git-lfs.github.com/spec/v1", "oid sha256:0", "size 10"]
    file.write_text("\n".join(lines) + "\n")
    if kind == "cut":
        file.write_bytes(gzip.compress(file.read_bytes())[:-100])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no date", r"line 1: no column of dates among when, a, OT, b; allowed: one that is called date"),
        ("text", r"line 8: 'n/a\?' in column OT; allowed: a finite number"),
        ("empty", r"line 8: no value in column OT; allowed: a finite number"),
        ("bad date", r"line 8: 'soon' in column date; allowed: a date"),
        ("numbers for dates", r"line 2: the number 0 in column date"),
        ("back", r"line 9: 2016-07-01 06:00:00 after 2016-07-01 07:00:00; allowed: rows in the order of time"),
        ("two zones", "column date has dates of several time zones or forms"),
        ("columns", "Expected 4 fields in line 8, saw 5"),
        ("nothing", "rows of a csv file, a header first"),
        ("pointer", "a pointer of Git LFS"),
        ("cut", "it cannot be read to its end"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(kind: str, message: str, tmp_path: Path) -> None:
    broken(kind, tmp_path / "own.csv")
    with pytest.raises(BadData, match=message):
        load(str(tmp_path / "own.csv"))


def test_published_files_are_held_to_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"has no ETTh1\.csv; get it from https://github\.com/zhouhaoyi/ETDataset"):
        load("ETTh1", str(tmp_path))
    write(tmp_path / "ETT-small" / "ETTh1.csv", columns=("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"))
    with pytest.raises(
        BadData, match=r"has 400 rows of 7 columns, the published ETTh1\.csv 17,420 of 7: it is cut sho"
    ):
        load("etth1", str(tmp_path))
    with pytest.raises(BadData, match=r"it is another file; get weather\.csv from"):
        load(str(write(tmp_path / "weather.csv")))
    with pytest.raises(ValueError, match="unknown data set 'ETTh3'; did you mean ETTh"):
        load("ETTh3")
    with pytest.raises(BadData, match=r"there is no .*none\.csv; allowed: a csv file, or one of ETTh1"):
        load(str(tmp_path / "none.csv"))
    with pytest.raises(BadData, match="there is no column 'temperature'"):
        load(str(write(tmp_path / "own.csv")), target="temperature")
    assert len(SETS) == 9 and json.dumps(list(SETS))
