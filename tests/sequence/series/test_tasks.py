"""Forecasting, imputation and M4: batches, protocols, scores and references, on small files and on published ones."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics import MeanAbsoluteError, MeanSquaredError, SymmetricMeanAbsolutePercentageError

from matmix.experiments.config import RunConfig
from matmix.experiments.data import Finding
from matmix.experiments.folder import Result, read_metrics
from matmix.experiments.report import write_report
from matmix.experiments.report.collect import collect
from matmix.experiments.run import execute
from matmix.experiments.study import Study, StudyTask
from matmix.experiments.task import Batch, Task
from sequence.series.data.check import series
from sequence.series.data.m4 import FREQUENCIES, read
from sequence.series.data.masks import missing
from sequence.series.data.sets import SETS
from sequence.series.metrics import MASE, SMAPE, AbsoluteError, SquaredError, m4_summary
from sequence.series.models import list_series_models
from sequence.series.models.base import series_model_class
from sequence.series.naive import naive2
from sequence.series.pictures import _errors, _last_season, forecasts, learned
from sequence.series.saturation import saturation
from sequence.series.tasks import scripts
from sequence.series.tasks.forecast import Forecast
from sequence.series.tasks.imputation import Imputation
from sequence.series.tasks.m4 import M4
from tests.experiments.synthetic import write_run
from tests.fixtures import load_fixture
from tests.reference.weights import draw_input
from tests.sequence.series.tables import m4, write
from tests.sequence.series.test_data import DATA

SMALL = "itransformer(dim=8, hidden=8, depth=1, heads=2, dropout=0.0)"
NAMES = ("forecast", "imputation", "m4")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("series")
    table = {"data": str(write(root / "own.csv", rows=1200)), "architecture": SMALL, "lookback": 12}
    return {
        "forecast": Forecast(**table, horizon=6),
        "imputation": Imputation(**table, rate=0.3),
        "m4": M4(architecture=SMALL, frequency="Weekly", folder=str(m4(root))),
    }


def equal(one: Batch, two: Batch) -> bool:
    parts = [{**batch.x, **{f"y.{name}": value for name, value in batch.y.items()}} for batch in (one, two)]
    return parts[0].keys() == parts[1].keys() and all(torch.equal(parts[0][name], parts[1][name]) for name in parts[0])


def joined(batches: list[Batch], name: str = "x") -> torch.Tensor:
    return torch.cat([batch.x[name] for batch in batches])


# ------------------------------------------------------------------ every task, both protocols


@pytest.mark.parametrize("protocol", ["strict", "published"])
@pytest.mark.parametrize("name", NAMES)
class TestEveryTask:
    def test_batches_follow_from_seed_and_step(self, name: str, protocol: str, tasks: dict[str, Any]) -> None:
        task = dataclasses.replace(tasks[name], protocol=protocol)
        first = list(itertools.islice(task.batches("train", 16, seed=5), 40))
        again = list(itertools.islice(task.batches("train", 16, seed=5, start=30), 10))
        assert all(equal(one, two) for one, two in zip(first[30:], again, strict=True))
        assert not equal(first[0], next(task.batches("train", 16, seed=6)))
        whole = next(task.batches("train", 16, seed=1, start=3))
        parts = [next(task.batches("train", 16, seed=1, start=3, rank=rank, world=2)) for rank in (0, 1)]
        for key in whole.x:
            assert torch.equal(torch.stack([part.x[key] for part in parts], 1).flatten(0, 1), whole.x[key])

    def test_evaluations(self, name: str, protocol: str, tasks: dict[str, Any]) -> None:
        """Strict ones are the same whatever the seed and the batch; every window is there once in both."""
        task = dataclasses.replace(tasks[name], protocol=protocol)
        for split in ("val", "test"):
            one, two, other = (list(task.batches(split, size, seed=seed)) for size, seed in ((7, 0), (1000, 0), (7, 1)))
            shares = [batch for rank in range(3) for batch in task.batches(split, 7, rank=rank, world=3)]
            assert len(joined(shares)) == len(joined(one)) == len(joined(two))
            masks = protocol == "published" and name == "imputation"
            order = protocol == "published" and name != "m4" and split == "val"
            assert torch.equal(joined(one), joined(two)) != masks
            assert torch.equal(joined(one), joined(other)) != (masks or order)
            assert all(equal(a, b) for a, b in zip(one, task.batches(split, 7), strict=True))

    def test_it_trains_and_is_scored(self, name: str, protocol: str, tasks: dict[str, Any]) -> None:
        task = dataclasses.replace(tasks[name], protocol=protocol)
        batch = next(task.batches("val", 8))
        for mixer in ("", "default", "pooling"):
            model = task.model(mixer, 0)
            output = task.forward(model, batch)
            task.loss(output, batch).backward()
            assert all(parameter.grad is not None for parameter in model.parameters())
        metrics = task.metrics()
        for key, metric in metrics.items():
            metric.update(*task.prediction(output.detach(), batch))
            assert metric.compute().isfinite(), key
        facts, naive = task.facts(), task.baselines()
        assert json.loads(json.dumps(facts)) == facts and facts["protocol"] == protocol
        assert len(naive) == 3 and all(scores.keys() == metrics.keys() for scores in naive.values())
        assert all(np.isfinite(list(scores.values())).all() for scores in naive.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_ends_and_is_the_same_again(name: str, tasks: dict[str, Any], tmp_path: Path) -> None:
    options = dataclasses.asdict(dataclasses.replace(tasks[name], protocol="published"))
    recipe = {"steps": 6, "eval_every": 3, "halve_every": 3, "log_every": 3, "batch_size": 8}
    cls = type(tasks[name])
    config = RunConfig(f"{cls.__module__}:{cls.__qualname__}", "pooling", 0, options, recipe)
    scores = [execute(config, tmp_path / again).test for again in ("one", "two")]
    assert scores[0] == scores[1] and tasks[name].metric in scores[0]
    lines = [(tmp_path / again / "metrics.jsonl").read_bytes() for again in ("one", "two")]
    assert lines[0] == lines[1] and Result.read(tmp_path / "one").baselines
    assert [line["lr"] for line in read_metrics(tmp_path / "one") if line["split"] == "train"] == pytest.approx(
        [config.make_recipe().lr] * 2
    )


@pytest.mark.slow
def test_pictures_of_a_study(tasks: dict[str, Any], tmp_path: Path) -> None:
    options = dataclasses.asdict(tasks["forecast"])
    recipe = {"steps": 2, "eval_every": 2, "log_every": 2, "batch_size": 8}
    for mixer in ("default", "identity"):
        config = RunConfig("sequence.series.tasks.forecast:Forecast", mixer, 0, options, recipe)
        assert execute(config, tmp_path / "study" / mixer).status == "finished"
        errors = _errors(collect(tmp_path / "study").runs[0], 3)
        assert errors.by_step.mean() == pytest.approx(errors.by_column.mean())
        assert errors.by_step.mean() == pytest.approx(Result.read(tmp_path / "study" / "default").test["mse"], rel=1e-5)
    naive = _last_season(tasks["forecast"], 3)
    known = tasks["forecast"].baselines()["last season (24 steps)"]["mse"]
    assert naive.by_step.mean() == pytest.approx(known, rel=1e-5)
    for picture in (forecasts, learned):
        out = tmp_path / "pictures" / f"{picture.__name__}.png"
        assert picture(tmp_path / "study", out).splitlines()[0] == str(out) and out.stat().st_size > 10_000
    write_run(tmp_path / "other", Study("o", (StudyTask("recall"),), ("ssd",)).runs()[0], 0.5)
    with pytest.raises(ValueError, match="no finished run of the task forecast"):
        forecasts(tmp_path / "other", tmp_path / "no.png")


def test_whether_a_data_set_is_saturated(tmp_path: Path) -> None:
    """Made-up runs: the gap between the best arm and DLinear beside the spread over seeds. The report has the line."""

    def said(levels: dict[str, tuple[float, ...]], copies: int = 1) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for architecture, scores in levels.items():
            options = {"data": "ETTh1", "architecture": architecture}
            study = Study("s", (StudyTask("forecast", options),), ("default",), seeds=tuple(range(len(scores))))
            for run, score, copy in (
                (*pair, at) for pair in zip(study.runs(), scores, strict=True) for at in range(copies)
            ):
                place = dataclasses.replace(run, folder=f"{copy}/{architecture}/{run.seed}")
                write_run(folder, place, score)
                path = folder / place.folder
                found = dataclasses.replace(
                    Result.read(path), test={"mse": score}, metric="mse", higher_is_better=False,  # type: ignore[type-var]
                    baselines={"zeros": {"mse": 1.0}, "last value": {"mse": 0.6}},
                    facts={"steps read": 96, "steps to forecast": 96},
                )  # fmt: skip
                (path / "result.json").write_text(json.dumps(dataclasses.asdict(found)))
        (line,) = saturation(collect(folder).by_task()["forecast"])
        return line

    line = said({"dlinear": (0.4, 0.402), "itransformer": (0.38, 0.381), "patchtst": (0.45, 0.46)}, copies=2)
    assert line == (
        "ETTh1, 96 to 96, strict: last value 0.600; dlinear 0.4010 ± 0.0014; best arm itransformer with default "
        "0.3805 ± 0.0007; the gap of +0.0205 is more than the spread over seeds, 0.0014"
    )
    write_report(tmp_path / "0", matrices=False)
    text = (tmp_path / "0" / "report" / "report.md").read_text()
    assert f"## All settings together\n\n- {line}" in text
    assert "the gap of +0.0005 is within the spread" in said({"dlinear": (0.4, 0.402), "patchtst": (0.4, 0.401)})
    assert said({"patchtst": (0.4,)}).endswith("last value 0.600; best arm patchtst with default 0.4000")
    assert said({"dlinear": (0.4,)}).endswith("dlinear 0.4000")
    assert said({"dlinear": (0.4,), "patchtst": (0.5,)}).endswith("one seed says nothing of the spread")


# ------------------------------------------------------------------ what protocols are


def test_published_validation_is_the_mean_of_batch_means(tasks: dict[str, Any]) -> None:
    """Metric and loss of a shuffled evaluation; the exact one is that of strict."""
    published, strict = (dataclasses.replace(tasks["forecast"], protocol=name) for name in ("published", "strict"))
    means, metric = [], published.metrics()["mse"]
    count = len(published.windows("val"))
    assert count % 16 == 3
    for batch in published.batches("val", 16, seed=3):
        output = torch.zeros_like(batch.y["values"])
        means.append(batch.y["values"].square().mean().item())
        assert published.loss(output, batch).item() == pytest.approx(means[-1], rel=1e-6)
        assert published.weight(batch) == pytest.approx(6 * 3)
        metric.update(*published.prediction(output, batch))
    assert float(metric.compute()) == pytest.approx(np.mean(means), rel=1e-6)
    exact = torch.cat([batch.y["values"] for batch in strict.batches("val", 16)]).square().mean().item()
    assert abs(np.mean(means) / exact - 1) > 1e-4


def test_what_a_model_is_told_of_the_time(tmp_path: Path) -> None:
    own = str(write(tmp_path / "own.csv", freq="15min"))
    for protocol, names in (("published", 4), ("strict", 5)):
        task = Forecast(data=own, protocol=protocol, architecture=SMALL, lookback=12, horizon=6)  # type: ignore[arg-type]
        assert task.mark_count == names == next(task.batches("val", 2)).x["future_marks"].shape[-1]
    assert task.season == 96


def test_scaling_knows_the_training_rows_alone(tasks: dict[str, Any], tmp_path: Path) -> None:
    lines = Path(tasks["forecast"].data).read_text().splitlines()
    first = tasks["forecast"].splits["val"][0]
    changed = tmp_path / "changed.csv"
    changed.write_text("\n".join([*lines[: first + 1], *(line.replace(",", ",9") for line in lines[first + 1 :])]))
    one, two = tasks["forecast"], dataclasses.replace(tasks["forecast"], data=str(changed))
    assert np.array_equal(one.scaler.mean, two.scaler.mean) and np.array_equal(one.scaler.std, two.scaler.std)
    assert not np.array_equal(one.table.values, two.table.values)
    assert all(
        equal(a, b) for a, b, _ in zip(one.batches("train", 16), two.batches("train", 16), range(9), strict=False)
    )
    assert torch.equal(one.rows[0].double().mean(0).round(decimals=1), one.rows[0].new_zeros(3).double())


def test_decoders_begin_with_known_steps(tasks: dict[str, Any]) -> None:
    batch = next(tasks["forecast"].batches("val", 4))
    assert torch.equal(batch.x["start"][:, :6], batch.x["x"][:, -6:]) and (batch.x["start"][:, 6:] == 0).all()
    assert batch.x["start"].shape[1] == 12


def test_series_of_another_order_have_the_forecasts_of_that_order(tasks: dict[str, Any]) -> None:
    """Of models that read each series by itself, and of those to which series are a set."""
    order = torch.tensor([2, 0, 1])
    for name in ("dlinear", SMALL, "patchtst(dim=8, hidden=8, heads=2, patch=4, stride=2)"):
        task = dataclasses.replace(tasks["forecast"], architecture=name)
        model, x = task.model("", 0).eval(), next(task.batches("val", 4)).x
        moved = {key: value if "marks" in key else value[..., order] for key, value in x.items()}
        with torch.no_grad():
            torch.testing.assert_close(model(**moved), model(**x)[..., order], rtol=1e-4, atol=1e-5)


def test_other_weights_are_the_same_whatever_the_mixer(tasks: dict[str, Any]) -> None:
    one, two = (tasks["forecast"].model(mixer, 3).state_dict() for mixer in ("", "pooling"))
    shared = [key for key in one if key in two and "mixer" not in key]
    assert len(shared) > 5 and all(torch.equal(one[key], two[key]) for key in shared)
    assert all(
        torch.equal(value, one[key]) for key, value in tasks["forecast"].model("default", 3).state_dict().items()
    )


def test_scripts_say_what_models_know() -> None:
    for name in list_series_models():
        known = inspect.signature(series_model_class(name)).parameters
        found = [scripts.m4(name, known), scripts.imputation(name, "ETTh1", known)]
        found += [scripts.forecast(name, data, horizon) for data in SETS for horizon in (24, 96, 192, 720)]
        assert all(set(script.sizes) <= set(known) for script in found), name
    assert Forecast(data="ILI", architecture="dlinear").length == 36 and Forecast(architecture="mamba").length == 96
    assert scripts.forecast("patchtst", "ETTh1", 720).sizes == {"depth": 1, "heads": 16}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "dlinaer"}, "there is no time-series model 'dlinaer'; did you mean dlinear"),
        ({"architecture": "dlinear(kernl=3)"}, "dlinear has no option 'kernl'; did you mean kernel"),
        ({"architecture": "dlinear, patchtst"}, r"Forecast\.architecture must be one name with named options"),
        ({"protocol": "loose"}, r"Forecast\.protocol must be one of 'strict', 'published', got 'loose'"),
        ({"horizon": -1}, r"Forecast\.horizon must be a whole number in \[0, 1e\+09\]"),
    ],
)
def test_wrong_settings_say_so(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Forecast(**settings)


def test_published_numbers_stand_beside_the_same_settings_only() -> None:
    task = Forecast(architecture="dlinear", protocol="published")
    scores = task.published(task.recipe())
    assert [score["mse"] for score in scores.values()] == [0.386, 0.3962]
    others: list[tuple[Task, dict[str, Any]]] = [
        (Forecast(architecture="dlinear"), {}),
        (dataclasses.replace(task, lookback=192), {}),
        (dataclasses.replace(task, architecture="dlinear(kernel=5)"), {}),
        (task, {"lr": 1e-3}),
        (dataclasses.replace(task, epochs=3), {}),
    ]
    for other, changes in others:
        assert not other.published(dataclasses.replace(other.recipe(), **changes))
    assert task.named_recipe("justdense")[1].batch_size == 128 and task.recipe().steps == 2650


# ------------------------------------------------------------------ what is missing


def test_masks() -> None:
    shape = (400, 96, 8)
    for kind, rates in (("points", (0.125, 0.5)), ("blocks", (0.125, 0.5)), ("channels", (0.25, 0.9))):
        for rate in rates:
            gone = missing(kind, rate, shape, 1)  # type: ignore[arg-type]
            share = 7 / 8 if rate == 0.9 else rate
            assert gone.float().mean().item() == pytest.approx(share, abs=0.01), (kind, rate)
            assert torch.equal(gone, missing(kind, rate, shape, 1))  # type: ignore[arg-type]
    whole = missing("channels", 0.25, shape, 1)
    assert (whole.all(1) == whole.any(1)).all() and (whole[:, 0].sum(-1) == 2).all()
    runs = missing("blocks", 0.1, shape, 1).float().diff(dim=1).abs().sum()  # of blocks there are fewer edges
    assert runs < 0.3 * missing("points", 0.1, shape, 1).float().diff(dim=1).abs().sum()
    with pytest.raises(ValueError, match="at least 2 columns"):
        missing("channels", 0.5, (1, 4, 1), 0)


def test_imputation_hides_what_it_asks(tasks: dict[str, Any]) -> None:
    task = tasks["imputation"]
    batch = next(task.batches("test", 8))
    gone = batch.y["weight"] > 0
    assert (batch.x["x"][gone] == 0).all() and torch.equal(~gone, batch.x["observed"])
    assert torch.equal(batch.x["x"][~gone], batch.y["values"][~gone])
    output = torch.where(gone, batch.y["values"], torch.nan)  # what is not asked is not looked at
    metric = task.metrics()["mse"]
    metric.update(*task.prediction(output, batch))
    assert metric.compute() == 0


# ------------------------------------------------------------------ metrics


def test_metrics_are_the_published_ones_and_the_libraries() -> None:
    found = load_fixture("time_series/protocol_metrics").data
    output, values = (torch.from_numpy(draw_input((4, 6, 3), name)) for name in ("pred", "true"))
    target = {"values": values, "weight": torch.ones(4, 1, 1)}
    for ours, theirs, key in (
        (SquaredError(), MeanSquaredError(), "mse"),
        (AbsoluteError(), MeanAbsoluteError(), "mae"),
    ):
        ours.update(output, target)
        theirs.update(output.flatten(), values.flatten())
        assert float(ours.compute()) == pytest.approx(found["forecast_metrics"][key], rel=1e-10)
        assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-5)
    output, values = (torch.from_numpy(draw_input((3, 5), name) + 4) for name in ("forecast", "target"))
    values[2, 2] = 0
    insample, weight = torch.from_numpy(draw_input((3, 12), "insample") + 4), torch.ones(3, 5).double()
    weight[1, 3:] = 0
    scale = (insample[:, 4:] - insample[:, :-4]).abs().mean(1, keepdim=True)
    target = {"values": values, "weight": weight, "scale": scale}
    share = float(weight.mean())  # the published loss is a mean over missing steps too
    for metric, key in ((SMAPE(), "smape"), (MASE(), "mase")):
        metric.update(output, target)
        assert float(metric.compute()) * share == pytest.approx(found["losses"][key], rel=1e-9)
    ours, theirs = SMAPE(), SymmetricMeanAbsolutePercentageError()
    ours.update(output, {"values": values, "weight": torch.ones(3, 5)})
    theirs.update(output, values)
    assert float(ours.compute()) == pytest.approx(100 * float(theirs.compute()), rel=1e-5)


def test_the_competitions_table() -> None:
    found = load_fixture("time_series/protocol_metrics").data["m4_summary"]
    number, scores = 0, {}
    for frequency, count in found["counts"].items():
        horizon, season = found["horizons"][frequency], found["frequencies"][frequency]
        assert (horizon, season) == FREQUENCIES[frequency][1:3]
        parts: dict[str, list[np.ndarray]] = {kind: [] for kind in ("train", "test", "naive2", "forecast")}
        for _ in range(count):
            for kind, rows in parts.items():
                size = 60 if kind == "train" else horizon
                rows.append(np.abs(draw_input((size,), f"m4.{kind}.{number}")) * 10 + 5)
            number += 1
        train = np.stack(parts["train"])
        scale = torch.from_numpy(np.abs(train[:, season:] - train[:, :-season]).mean(1, keepdims=True))
        values, forecast = (torch.from_numpy(np.stack(parts[kind])) for kind in ("test", "forecast"))
        naive = torch.from_numpy(np.stack(parts["naive2"]).astype(np.float32).astype(np.float64))
        target = {"values": values, "weight": torch.ones(1, 1), "scale": scale, "naive2": naive}
        metrics = {
            "smape": SMAPE(),
            "mase": MASE(),
            "naive2_smape": SMAPE(of="naive2"),
            "naive2_mase": MASE(of="naive2"),
        }
        for metric in metrics.values():
            metric.update(forecast, target)
        scores[frequency] = {key: float(metric.compute()) for key, metric in metrics.items()}
    table = m4_summary(scores, found["counts"])
    for score in ("smape", "mase", "owa"):
        assert {group: round(row[score], 3) for group, row in table.items()} == found[score]


# ------------------------------------------------------------------ M4


def test_m4_windows(tasks: dict[str, Any]) -> None:
    strict, published = (dataclasses.replace(tasks["m4"], protocol=name) for name in ("strict", "published"))
    known, horizon = strict.data.known, strict.horizon
    x, y = strict._scored["val"]
    assert y["values"][5, :, 0].tolist() == pytest.approx(known[5][-horizon:].tolist(), rel=1e-6)
    short = next(i for i, series in enumerate(known) if len(series) - horizon < strict.length)
    assert x["x"][short, 0] == x["x"][short, 1] == np.float32(known[short][0])  # padded with its first value
    assert x["x"][short, -1] == np.float32(known[short][-horizon - 1])
    for split in ("val", "test"):
        assert torch.equal(published._scored[split][1]["values"], strict._scored["test"][1]["values"])
    assert published._scored["val"][0]["x"][short, 0] == np.float32(published.past(known[short])[0])
    series = np.arange(1.0, 31.0)
    past, begin, target, there = published._window(series, 20)
    assert past.tolist() == [0.0] * 6 + list(series[:20]) and begin.tolist() == list(series[7:20])
    assert target.tolist() == [*series[20:], 0, 0, 0] and there.sum() == 10
    # Ends before a horizon: as published the target begins at the horizon, and its beginning is known.
    _, begin, target, there = published._window(series, 5)
    assert begin.tolist() == list(series[:13]) and target.tolist() == [*series[13:18], *[0] * 8] and there.sum() == 5
    _, begin, target, there = strict._window(series, 5)
    assert begin[-1] == 5 and begin[0] == 1 and target.tolist() == list(series[5:18])


def test_m4_files_are_held_to_what_they_are(tmp_path: Path) -> None:
    m4(tmp_path)
    path = tmp_path / "Weekly-train.csv"
    lines = path.read_text().splitlines()
    for change, message in (
        (lines[:-1], r"Weekly-train\.csv has 358 series, the published file 359: it is cut short"),
        ([*lines[:4], lines[4].replace('"1', '"x', 1), *lines[5:]], r"line 5: 'x.*' in series W4; allowed: a number"),
        ([*lines[:4], '"W4",,', *lines[5:]], r"line 5: series W4 has no value"),
        ([*lines[:4], lines[5], lines[4], *lines[6:]], "must name the same series in the same order"),
    ):
        path.write_text("\n".join(change))
        with pytest.raises(ValueError, match=message):
            M4(architecture="dlinear", frequency="Weekly", folder=str(tmp_path)).found()
        path.unlink()  # the next one has another time stamp
    with pytest.raises(ValueError, match=r"has no Weekly-train\.csv; get it from https://github\.com/Mcompetitions"):
        M4(architecture="dlinear", frequency="Weekly", folder=str(tmp_path)).found()


def test_naive2_is_the_competitions() -> None:
    """Its forecasts, and its published SMAPE and MASE."""
    path = DATA / "m4" / "naive2-hourly-weekly.csv.gz"
    if not path.is_file():
        pytest.skip(f"there is no {path}: set MATMIX_DATA to the folder with m4")
    theirs = read(path)
    for frequency, smape, mase in (("Hourly", 18.383, 2.395), ("Weekly", 9.161, 2.777)):
        task = M4(architecture="dlinear", frequency=frequency, folder=str(DATA))
        for name, known in zip(task.data.names[::7], task.data.known[::7], strict=True):
            np.testing.assert_allclose(naive2(known, task.horizon, task.season), theirs[name], rtol=1e-6)
        scores = task.baselines()["naive2"]
        assert (round(scores["smape"], 3), round(scores["mase"], 3)) == (smape, mase)
        assert scores["owa"] == pytest.approx(1)


# ------------------------------------------------------------------ published files


def test_naive_references() -> None:
    if not (DATA / "ett").is_dir():
        pytest.skip(f"{DATA} has no ett: set MATMIX_DATA to the folder that does")
    for data, pairs in (
        ("ETTh1", ((1.110, 0.796), (1.294, 0.713), (0.512, 0.433))),
        ("ETTh2", ((3.156, 1.362), (0.432, 0.422), (0.391, 0.380))),
    ):
        scores = Forecast(architecture="dlinear", data=data, folder=str(DATA)).baselines().values()
        assert tuple((round(score["mse"], 3), round(score["mae"], 3)) for score in scores) == pairs


def test_a_check_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "ett" / "ETTm1.csv")
    m4(tmp_path / "m4")
    found = list(series(tmp_path))
    assert Finding("m4", "found", "Weekly: 359 series of 20 to 39 steps, 13 asked") in found
    status = [finding.status for finding in found if finding.part in ("forecast", "m4")]
    assert status.count("missing") == 8 + 5 and status.count("damaged") == 1
    damaged = next(finding.text for finding in found if finding.status == "damaged")
    assert "400 rows of 3 columns, the published ETTm1.csv 69,680 of 7" in damaged


def test_errors_of_single_windows_have_the_mean_that_is_the_score(tmp_path):
    own = str(write(tmp_path / "own.csv", rows=1200))
    task = Forecast(data=own, architecture=SMALL, lookback=12, horizon=6)
    model, metric, each = task.model("", 0).eval(), task.metrics()["mse"], []
    with torch.no_grad():
        for batch in task.batches("test", 50):
            output = task.forward(model, batch)
            scores, weights = task.example_scores(output, batch)
            assert bool((weights == 6 * 3).all())
            each.append(scores)
            metric.update(*task.prediction(output, batch))
    found = torch.cat(each)
    assert len(found) == task.facts()["windows"]["test"] and task.example_span() == 18
    assert float(found.mean()) == pytest.approx(float(metric.compute()), rel=1e-5)
