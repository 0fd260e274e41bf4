"""Classification and anomalies: published protocols to the digit, strict ones that know nothing ahead, and files."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from matmix.experiments.config import RunConfig
from matmix.experiments.run import execute
from sequence.data.faults import BadData
from sequence.series.anomaly_scores import F1, AveragePrecision, point_adjusted, threshold
from sequence.series.data import anomalies, ts_files
from sequence.series.tasks.anomaly import SeriesAnomaly, cover
from sequence.series.tasks.classification import SeriesClassification
from tests.reference.weights import draw_input
from tests.sequence.series.tables import cases, recordings
from tests.sequence.series.test_data import DATA, published

SMALL = "dlinear(kernel=5)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    cases(root / "Waves")
    recordings(root / "waves.npz")
    return root


# ------------------------------------------------------------------ classification


def test_published_cases_of_uea() -> None:
    """Sizes, scaling and labels of both files of JapaneseVowels as the published loader has them."""
    fixture = published("data_protocol_uea_JapaneseVowels")
    if not (DATA / "uea_ucr" / "JapaneseVowels").is_dir():
        pytest.skip(f"{DATA} has no uea_ucr/JapaneseVowels: set MATMIX_DATA to the folder that does")
    task = SeriesClassification(folder=str(DATA), protocol="published")
    assert task.length == fixture["seq_len_used"] and task.padded["val"] is not task.padded["train"]
    for split, name in (("train", "TRAIN"), ("test", "TEST")):
        part, (values, mask, labels) = fixture["splits"][name], task.padded[split]
        assert (len(values), task.cases[split].longest) == (part["cases"], part["max_seq_len"])
        assert list(task.cases[split].classes) == part["classes"]
        first, last = part["first_case"], part["last_case"]
        assert [int(mask[0].sum()), int(mask[-1].sum())] == [first["shape"][0], last["shape"][0]]
        assert [int(labels[0]), int(labels[-1])] == [first["label"], last["label"]]
        np.testing.assert_allclose(values[0, 0], first["first_row"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(values[-1, last["shape"][0] - 1], last["last_row"], rtol=1e-5, atol=1e-6)
        assert (values[~mask] == 0).all()


def test_strict_cases_are_held_out_by_class_and_scaled_by_training_alone(folder: Path) -> None:
    task = SeriesClassification(SMALL, data=str(folder / "Waves"))
    labels = {split: found[2] for split, found in task.padded.items()}
    assert {split: torch.bincount(each).tolist() for split, each in labels.items()} == {
        "train": [10, 10], "val": [2, 2], "test": [4, 5],
    }  # fmt: skip
    values, mask, _ = task.padded["train"]
    real = values[mask]
    torch.testing.assert_close(real.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(real.std(0), torch.ones(2), atol=1e-5, rtol=0)
    other = replace(task, split_seed=1)
    assert not torch.equal(other.padded["val"][0], task.padded["val"][0])
    scores = task.baselines()
    assert scores["nearest neighbour"]["accuracy"] == 1 and scores["chance"]["accuracy"] == 0.5
    # What stands behind the end of a case is not read.
    model, batch = task.model("", 0), next(iter(task.batches("test", 9)))
    before = task.forward(model, batch)
    changed = torch.where(batch.mask.unsqueeze(-1), batch.x["x"], 1e3)
    torch.testing.assert_close(task.forward(model, batch._replace(x={"x": changed})), before)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("up\n", "up \n", ""),
        (":up", ":sideways", "the class 'sideways'; allowed: up, down"),
        ("@classLabel true up down", "@targetLabel true", "it names no classes"),
        ("@timeStamps false", "@timeStamps true", "have time stamps"),
        ("@data", "", "stands before @data"),
        (",", ",one,", "could not convert"),
        (":", ",0.1:", "channels of"),
        (":", ":1.0:", "channels"),
    ],
)
def test_files_of_cases(folder: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (folder / "Waves" / "Waves_TRAIN.ts").read_text()
    head, data = text.split("@data\n") if old not in ("@data",) else ("", text)
    changed = f"{head.replace(old, new)}@data\n{data.replace(old, new, 1)}" if head else data.replace(old, new, 1)
    (tmp_path / "Waves_TRAIN.ts.gz").write_bytes(gzip.compress(changed.encode()))
    if not message:
        assert len(ts_files.read_ts(tmp_path / "Waves_TRAIN.ts.gz").labels) == 24
        return
    with pytest.raises(BadData, match=message):
        ts_files.read_ts(tmp_path / "Waves_TRAIN.ts.gz")


def test_missing_values_and_missing_files(folder: Path, tmp_path: Path) -> None:
    lines = ["@classLabel true a b", "@data", "1,?,3:a", "?,5,?:b"]
    (tmp_path / "Gaps_TRAIN.ts").write_text("\n".join(lines))
    found = ts_files.read_ts(tmp_path / "Gaps_TRAIN.ts")
    assert [case[:, 0].tolist() for case in found.values] == [[1, 2, 3], [5, 5, 5]] and found.filled == 3
    with pytest.raises(BadData, match="get it from https://www"):
        ts_files.load("JapaneseVowels", str(tmp_path))
    cases(tmp_path / "Heartbeat", "Heartbeat")
    with pytest.raises(BadData, match="the published Heartbeat"):
        ts_files.load("Heartbeat", str(tmp_path))


# ------------------------------------------------------------------ anomalies


def test_published_threshold_and_adjustment() -> None:
    fixture = published("protocol_metrics")
    for case in fixture["point_adjust"]:
        found = point_adjusted(np.array(case["pred"], bool), np.array(case["gt"], bool))
        assert found.astype(int).tolist() == case["adjusted"]
    train, test = (
        torch.as_tensor(draw_input(*args)).abs() for args in (((400,), "train_energy"), ((200,), "test_energy"))
    )
    for ratio, name in ((1, "ratio_1"), (0.5, "ratio_0_5")):
        assert threshold(train, test, ratio=ratio) == pytest.approx(fixture["anomaly_threshold"][name], rel=1e-9)


@pytest.mark.parametrize("size", [(0, 100), (0, 95), (20, 93), (80, 90)])
def test_windows_cover_each_step_once(size: tuple[int, int]) -> None:
    first, end = size
    counted = [row for start, begin in cover(first, end, 16) for row in range(begin, start + 16)]
    assert counted == list(range(first, end))


def test_scores_of_a_model_that_finds_them(folder: Path) -> None:
    """One that gives back zeros, where anomalies are far off: all steps of the test once, whatever the batches."""
    task = SeriesAnomaly(SMALL, data=str(folder / "waves.npz"), length=16)
    batches = list(task.batches("test", 5))
    counted = torch.cat([batch.y["labels"][batch.y["counts"] & batch.y["test"][:, None]] for batch in batches])
    assert torch.equal(counted, torch.from_numpy(task.recordings[0].labels))
    reference = torch.cat([batch.y["values"][batch.y["counts"] & ~batch.y["test"][:, None]] for batch in batches])
    assert torch.equal(reference, task.rows["train"][0][160:])  # validation, the last fifth
    naive = task.baselines()
    assert naive["distance from the mean"]["auprc"] == 1 and naive["random"]["auprc"] < 0.3
    assert "f1_adjusted" not in naive["random"]
    loose = replace(task, protocol="published").baselines()
    assert loose["random"]["f1_adjusted"] > loose["random"]["f1"]
    metric, shuffled = F1(1.0, adjusted=True), F1(1.0, adjusted=True)
    for order, found in ((batches, metric), (batches[::-1], shuffled)):
        for batch in order:
            found.update(batch.y["values"].square().mean(-1), batch.y)
    assert metric.compute() == shuffled.compute() > 0


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_channels_that_hardly_change_in_training_are_named(
    folder: Path, tmp_path: Path, protocol: Literal["strict", "published"]
) -> None:
    (one,) = anomalies.load(str(folder / "waves.npz"))
    quiet = SeriesAnomaly(SMALL, data=str(folder / "waves.npz"), length=16, protocol=protocol)
    assert quiet.far() == {} and "deviations" not in quiet.found()
    rows = np.random.default_rng(0).normal(size=(len(one.train) + len(one.test), 1)) * 1e-4
    rows[-3:] = 1.0
    train, test = (
        np.hstack(pair) for pair in ((one.train, rows[: len(one.train)]), (one.test, rows[len(one.train) :]))
    )
    np.savez(tmp_path / "still.npz", train=train, test=test, label=one.labels)
    task = replace(quiet, data=str(tmp_path / "still.npz"))
    ((name, far),) = task.far().items()
    assert name.endswith(f"channel {train.shape[1] - 1}") and 9e3 < far < 1.1e4
    assert task.facts()["hardly change in training"] == {name: f"{far:.0f} deviations away in the test"}
    assert f"channels that hardly change in training: 1, up to {far:,.0f} deviations" in task.found()
    assert task.rows["test"][0].max() == pytest.approx(far)
    held = replace(task, clip=10.0)
    assert held.rows["test"][0].abs().max() == 10 and "--task.clip" not in held.found()
    assert torch.equal(held.rows["test"][0][:-3], task.rows["test"][0][:-3].clamp(-10, 10))


def test_what_the_scripts_tell_apart() -> None:
    """Strides, percents and epochs of the published scripts, by what the data are called."""
    for data, stride, percent, epochs in (
        ("SMD", 100, 0.5, 10), ("smd/machine-1-2.npz", 100, 0.5, 10), ("x/MSL", 1, 1.0, 10),
        ("smap_msl/msl.npz", 1, 1.0, 10), ("smap_msl/smap.npz", 1, 1.0, 3), ("smdata/PSM", 1, 1.0, 3),
    ):  # fmt: skip
        task = SeriesAnomaly(SMALL, data=data, protocol="published")
        assert (task.step, task.percent, task.script().epochs) == (stride, percent, epochs), data


def test_average_precision_is_that_of_the_definition() -> None:
    """The mean, over the anomalous steps, of the precision among all steps that score as high."""
    scores, labels = torch.rand(300, generator=torch.Generator().manual_seed(0)) * 1e9, torch.arange(300) % 7 == 0
    precisions = [labels[scores >= score].double().mean() for score in scores[labels]]
    found = AveragePrecision().score(scores, labels, scores)
    assert float(found) == pytest.approx(float(torch.stack(precisions).mean()), rel=1e-6)


def test_forms_of_recordings(folder: Path, tmp_path: Path) -> None:
    """The same recording in every form in which people have it."""
    (whole,) = anomalies.load(str(folder / "waves.npz"))
    arrays = {"train": whole.train, "test": whole.test, "test_label": whole.labels.astype(float)}
    for form in ("npy", "csv", "txt", "npz"):
        (tmp_path / form).mkdir()
    for part, array in arrays.items():
        np.save(tmp_path / "npy" / f"SMD_{part}.npy", array)
        stamped = np.column_stack([np.arange(len(array)), array])
        np.savetxt(tmp_path / "csv" / f"{part}.csv", stamped, delimiter=",", header="time", comments="")
        (tmp_path / "txt" / part).mkdir()
        np.savetxt(tmp_path / "txt" / part / "machine-1-1.txt", array, delimiter=",")
    named = {f"A-{number}_{part.removeprefix('test_')}": array for number in (1, 2) for part, array in arrays.items()}
    np.savez(tmp_path / "npz" / "msl.npz", **named)
    for form, series in (("npy", ""), ("csv", ""), ("txt", "machine-1-1"), ("npz", "A-2")):
        (found,) = anomalies.load(form, str(tmp_path), series)
        for mine, theirs in zip(found[1:4], whole[1:4], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    assert len(anomalies.load("npz", str(tmp_path))) == 2
    ucr = tmp_path / "001_UCR_Anomaly_x_150_170_180.txt.gz"
    ucr.write_bytes(gzip.compress("\n".join(map(str, whole.test[:, 0])).encode()))
    (found,) = anomalies.load(str(ucr))
    assert found.train.shape == (150, 1) and np.flatnonzero(found.labels).tolist() == list(range(20, 31))
    for data, series, message in (("nothing", "", "there is no nothing"), ("npz", "A-3", "no recording 'A-3'.*A-")):
        with pytest.raises(BadData, match=message):
            anomalies.load(data, str(tmp_path), series)
    (tmp_path / "csv" / "test_label.csv").unlink()
    with pytest.raises(BadData, match=r"no test_label\.csv"):
        anomalies.load("csv", str(tmp_path))


@pytest.mark.parametrize("protocol", ["strict", "published"])
def test_runs_without_labels_on_validation(folder: Path, tmp_path: Path, protocol: str) -> None:
    """The loss picks the weights; the scores are those of the test alone."""
    options = {"architecture": SMALL, "data": str(folder / "waves.npz"), "length": 16, "protocol": protocol}
    recipe = {"steps": 4, "batch_size": 8, "eval_every": 2, "halve_every": 2}
    config = RunConfig("series-anomaly", "", 0, options, recipe)
    result = execute(config, tmp_path / "run")
    assert result.status == "finished", result.error
    assert set(result.val) == {"loss"} and {"auprc", "auroc", "f1"} <= set(result.test)
    assert ("f1_adjusted" in result.test) == (protocol == "published")
