"""Spoken words from files of sound: formats, splits, damage, half the rate, a run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from matmix import create_mixer
from matmix.experiments.config import RunConfig
from matmix.experiments.optimizer import unused_groups
from matmix.experiments.run import execute
from sequence.data import speech_sets
from sequence.data.speech import LISTS, split_of
from sequence.tasks.speech import HALF, Speech, halved, longer_steps
from tests.sequence.written import LENGTH, RATE, SPOKEN, recordings

soundfile = pytest.importorskip("soundfile", reason="needs matmix[speech]")
pytest.importorskip("torchaudio", reason="needs matmix[speech]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recordings(tmp_path_factory.mktemp("speech"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMIX_CACHE", str(tmp_path / "cache"))
    speech_sets.prepared.cache_clear()


def small(data: Path, **settings: Any) -> Speech:
    given = {"words": "folders", "length": LENGTH, "sample_rate": RATE, "dim": 8, "depth": 1, "position": "none"}
    return Speech(data=str(data), **{**given, **settings})


def whole(task: Speech, split: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = next(iter(task.batches(split, 1000)))
    return batch.x, batch.y if isinstance(batch.y, torch.Tensor) else batch.y[0], batch.mask


@pytest.mark.parametrize("inputs", ["wave", "mfcc"])
def test_laws_of_batches(folder: Path, inputs: str) -> None:
    task = small(folder, inputs=inputs, pad="length")
    assert task.tests() == ("test@shuffled", HALF) if inputs == "wave" else ("test@shuffled",)
    first = list(itertools.islice(task.batches("train", 8, seed=5), 9))
    again = list(itertools.islice(task.batches("train", 8, seed=5, start=6), 3))
    assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(first[6:], again, strict=True))
    parts = [next(task.batches("train", 8, seed=5, rank=rank, world=2)).x for rank in (0, 1)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), first[0].x)
    everything = torch.cat([batch.x[batch.mask] for batch in itertools.islice(task.batches("train", 8), 3)])
    torch.testing.assert_close(everything.mean(0), torch.zeros(task.channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(everything.std(0, correction=0), torch.ones(task.channels), atol=1e-4, rtol=0)
    for split in ("val", "test", *task.tests()[1:]):
        x, y, mask = whole(task, split)
        assert len(x) == 12 and torch.equal(torch.cat([b.x for b in task.batches(split, 5)]), x)
        assert (x[~mask] == 0).all() and y.bincount().tolist() == [6, 6]
        assert sum(len(b.x) for rank in range(3) for b in task.batches(split, 5, rank=rank, world=3)) == 12
        # Padding is no part of a recording: the model says of a padded batch what it says of one as short as may be.
        short = next(iter(dataclasses.replace(task, pad="batch").batches(split, 1000)))
        model = task.model("attention(head_dim=4)", 0)
        assert torch.equal(short.x[short.mask], x[mask])
        torch.testing.assert_close(task.forward(model, short), model(x, mask=mask))


def test_the_samples_are_those_of_the_files(folder: Path) -> None:
    """Alphabetical classes; the files of a list in the order of their names; S4's coefficients by torchaudio."""
    import torchaudio

    task = small(folder)
    found = task._prepared()
    assert found.classes == SPOKEN and task.facts()["test"] == {
        "examples": 12,
        "longest": 320,
        "share that is cut": 0.0,
    }
    assert json.loads(json.dumps(task.facts())) == task.facts() and "12 test" in task.found()
    names = sorted((folder / LISTS["test"]).read_text().split())
    x, y, mask = whole(task, "test")
    for name, row, label, real in zip(names, x, y, mask, strict=True):
        wave = soundfile.read(folder / name, dtype="float32")[0]
        assert SPOKEN[label] == name.split("/")[0] and int(real.sum()) == len(wave)
        torch.testing.assert_close(
            row[real, 0] * found.std[0] + found.mean[0], torch.from_numpy(wave), atol=1e-5, rtol=0
        )
    coefficients = small(folder, inputs="mfcc")
    scale = coefficients._prepared()
    x, _, mask = whole(coefficients, "test")
    wave, _ = soundfile.read(folder / names[0], dtype="float32")
    options = {"n_fft": 200, "n_mels": 64}
    theirs = torchaudio.transforms.MFCC(RATE, 20, log_mels=True, melkwargs=options)(torch.from_numpy(wave)).T
    ours = x[0, mask[0]] * torch.from_numpy(scale.std) + torch.from_numpy(scale.mean)
    assert len(ours) == 1 + len(wave) // 100
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-4)


def test_half_the_rate(folder: Path) -> None:
    """A tone below the new limit stays what it is; one above is filtered out, where decimation folds it back. A model
    in continuous time takes twice the step: what it says is nearly what it says at the full rate."""
    times = torch.arange(800) / 1000
    low, high = (torch.sin(2 * torch.pi * hertz * times)[None, :, None] for hertz in (40, 400))
    torch.testing.assert_close(halved(low, "resample")[:, 20:-20], low[:, ::2][:, 20:-20], atol=5e-3, rtol=0)
    assert halved(high, "resample")[:, 20:-20].abs().max() < 0.01 and halved(high, "decimate").abs().max() > 0.9
    task = small(folder)
    full, half = (next(iter(task.batches(split, 1000))) for split in ("test", HALF))
    assert half.x.shape == (12, 160, 1) and torch.equal(half.mask.sum(1), (full.mask.sum(1) + 1) // 2)
    x = (low * torch.randn(8, generator=torch.Generator().manual_seed(0))).contiguous()
    for spec in ("s4d(causal=False, dt_max=0.01)", "s5(causal=False, dt_max=0.01)"):
        torch.manual_seed(0)
        mixer = create_mixer(spec, 8)
        wanted = mixer(x)[:, ::2]
        with longer_steps(mixer, 2):
            error = (mixer(x[:, ::2]) - wanted).abs().max()
        assert error < 0.25 * (mixer(x[:, ::2]) - wanted).abs().max()  # it is 1 again
        model = task.model(spec, 0).eval()
        assert not torch.equal(task.forward(model, half), model(half.x, mask=half.mask))


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("wave", lambda f: f.write_bytes(b"no sound at all"), r"it cannot be decoded: .*; allowed: a whole .wav"),
    ("wave", lambda f: soundfile.write(f, np.zeros(99), 8000), r"its rate is 8000 Hz; allowed: 1000 Hz .--task.sample"),
    ("wave", lambda f: soundfile.write(f, np.zeros((99, 2)), RATE), "it has 2 channels; allowed: one"),
    ("wave", lambda f: soundfile.write(f, np.zeros(0), RATE), "it has no samples; allowed: at least one"),
    ("mfcc", lambda f: soundfile.write(f, np.zeros(100), RATE), "100 samples; allowed: more than 100"),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "change", "message"), DAMAGE, ids=[message[:18] for *_, message in DAMAGE])
def test_damage_has_its_file(inputs: str, change: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = recordings(tmp_path / "data", 16)
    file = folder / "low" / "0005_nohash_0.wav"
    change(file)
    with pytest.raises(ValueError, match=rf"data: {re.escape(str(file))}: {message}"):
        small(folder, inputs=inputs).facts()
    facts = small(folder, inputs=inputs, broken="skip").facts()
    assert facts["left out as damaged"] == 1 and re.search(message, facts["the first of them"][0])


def test_lists_and_folders_that_do_not_fit(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "data", 16)
    with pytest.raises(ValueError, match=r"has no folder backward, bed, .*allowed: .*validation_list.txt"):
        small(folder, words="35").facts()
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere; allowed: google/speech_commands"):
        small(tmp_path / "nowhere").facts()
    (folder / LISTS["test"]).open("a").write("low/gone.wav\n")
    with pytest.raises(ValueError, match=r"testing_list.txt, line 5: there is no file 'low/gone.wav'"):
        small(folder).facts()
    (folder / LISTS["test"]).write_text((folder / LISTS["val"]).read_text())
    with pytest.raises(ValueError, match=r"testing_list.txt, line 1: '.*' is in the other list too"):
        small(folder).facts()
    (folder / LISTS["test"]).unlink()
    with pytest.raises(ValueError, match=r"has validation_list.txt alone; allowed: .* or neither"):
        small(folder).facts()
    # Names and splits of the release: a line of each of its lists, and one that is in neither.
    names = ("bed/026290a7_nohash_0.wav", "bed/0c40e715_nohash_0.wav", "bed/00176480_nohash_0.wav")
    assert [split_of(Path(name).name) for name in names] == ["val", "test", "train"]
    with pytest.raises(ValueError, match=r"Speech.half must be one of 'resample', 'decimate', got 'drop'"):
        small(folder, half="drop")
    with pytest.raises(ValueError, match=r"takes sequences of one length.*--task.pad length"):
        small(recordings(tmp_path / "again", 16)).model("dense", 0)


def test_tables_of_the_hub_are_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's files: encoded sounds and numbers of labels, silence among them, in the order of its own."""
    import datasets
    import pyarrow
    from pyarrow import parquet

    labels = ["low", "_silence_", "high"]
    features = {"audio": {"_type": "Audio", "sampling_rate": RATE}, "label": {"_type": "ClassLabel", "names": labels}}
    listed = {name: split for split in LISTS for name in (folder / LISTS[split]).read_text().split()}
    for split, theirs in (("train", "train"), ("val", "validation"), ("test", "test")):
        names = [f"{file.parent.name}/{file.name}" for file in sorted(folder.rglob("*.wav"))]
        mine = [name for name in names if listed.get(name, "train") == split]
        rows = [
            {"audio": {"bytes": (folder / name).read_bytes(), "path": name}, "label": labels.index(name.split("/")[0])}
            for name in mine
        ]
        table = pyarrow.Table.from_pylist([*rows, {"audio": {"bytes": b"", "path": "noise"}, "label": 1}])
        file = tmp_path / "hub" / "v0.02" / theirs / "0000.parquet"
        file.parent.mkdir(parents=True)
        table = table.cast(pyarrow.schema([table.schema.field(0), ("label", pyarrow.int64())]))
        described = json.dumps({"info": {"features": features}})
        parquet.write_table(table.replace_schema_metadata({"huggingface": described}), file)
    monkeypatch.setattr("sequence.data.speech.TEN", SPOKEN)
    plain, tables = small(folder), small(tmp_path / "hub", words="10")
    assert plain.facts()["checksum"] == tables.facts()["checksum"]

    def load_dataset(name: str, data_files: dict[str, str], revision: str, split: str) -> datasets.Dataset:
        assert name == "google/speech_commands" and revision == "refs/convert/parquet"
        return datasets.Dataset.from_parquet(str(tmp_path / "hub" / data_files[split].replace("*", "0000")))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert Speech(words="10", sample_rate=RATE, length=LENGTH).facts()["checksum"] == plain.facts()["checksum"]


def test_it_trains_from_files(folder: Path, tmp_path: Path) -> None:
    recipe = {"steps": 20, "batch_size": 8, "lr": 0.03, "eval_every": 20, "log_every": 20, "weight_decay": 0.0}
    settings = dataclasses.asdict(small(folder, inputs="wave", prenorm=False, pool="max"))
    result = execute(RunConfig("speech", "s4d(causal=False, dt_min=0.01)", 0, settings, recipe), tmp_path / "run")
    assert result.status == "finished", result.error
    assert result.test["accuracy"] > 0.8 > result.baselines["most frequent class"]["accuracy"] == 0.5
    assert result.tests[HALF]["accuracy"] > 0.5


def test_the_published_regime(folder: Path) -> None:
    """S4's sizes: 307 thousand parameters by its code; here B is in C, and there is no rank-one part."""
    task, recipe = small(folder).named_recipe("s4")
    assert (recipe.steps, recipe.batch_size, recipe.lr) == (212_080, 16, 0.01) and task.half == "decimate"
    model = task.model("", 0)
    weights = sum(parameter.numel() for parameter in model.parameters())
    count = task.found_regime().count
    wider = weights + 33 * 129  # 35 classes, not two
    assert (wider + sum(count.lacks.values())) / 1e6 == pytest.approx(count.millions, abs=0.0065)
    assert not unused_groups(model, recipe)
