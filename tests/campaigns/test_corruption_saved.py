"""Every file of a saved surgery, a distillation's checkpoint and a saved forecaster, flipped, cut, emptied, exchanged
and removed: whoever reads it refuses it by name, or gets what was saved."""

from __future__ import annotations

import copy
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from matmix import surgery
from matmix.experiments.verify import WRONG, verify
from matmix.files import Damaged
from matmix.folders import MARKER, NotOurs
from matmix.surgery import DistillRecipe, Stage
from matmix.surgery.distill import CHECKPOINT, HISTORY
from sequence.encoder import Encoder
from sequence.series.forecaster import Forecaster
from tests.campaigns.test_corruption import WAYS, harmed

RECIPE = DistillRecipe(Stage(1), None, None)


class Saved(NamedTuple):
    """Where a whole one stands, another of its sort, and what is read from such a folder."""

    whole: Path
    other: Path
    read: Callable[[Path], Any]


def teacher() -> nn.Module:
    torch.manual_seed(0)
    options = {"dim": 4, "depth": 1, "grid": (3,), "outputs": 2}
    return Encoder(lambda: nn.Linear(2, 4), "attention(head_dim=4)", head="class", embedding_std=1.0, **options)


def student(seed: int) -> tuple[nn.Module, surgery.Report]:
    model = teacher()
    return model, surgery.replace(model, "linear_attention(head_dim=4)", seed=seed)


def applied(folder: Path) -> dict[str, Any]:
    model = teacher()
    surgery.apply(model, folder)
    return model.state_dict()


def distilled(folder: Path, seed: int = 0) -> dict[str, Any]:
    """The state of a student that takes up what the folder holds."""
    model = student(seed)[0]
    surgery.distill(teacher(), model, lambda step: torch.ones(2, 3, 2), RECIPE, folder=folder)
    return model.state_dict()


def forecast(folder: Path) -> dict[str, Any]:
    frame = Forecaster.load(folder).predict()
    return {"dates": frame["ds"].tolist(), "values": torch.from_numpy(frame["dlinear"].to_numpy().copy())}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Saved]:
    root = tmp_path_factory.mktemp("saved")
    days = pd.date_range("2024-01-01", periods=40, freq="D")
    for seed in (0, 1):
        surgery.save(student(seed)[1], root / f"surgery-{seed}")
        distilled(root / f"distillation-{seed}", seed)
        table = pd.DataFrame({"unique_id": "a", "ds": days, "y": np.sin(np.arange(40) + seed)})
        settings = {"model": "dlinear", "horizon": 2, "lookback": 6, "steps": 2, "kernel": 3, "seed": seed}
        Forecaster(**settings).fit(table, quiet=True).save(root / f"forecaster-{seed}")
    reads = {"surgery": applied, "distillation": distilled, "forecaster": forecast}
    return {name: Saved(root / f"{name}-0", root / f"{name}-1", read) for name, read in reads.items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
        for name, value in one.items()
    )


def outcome(kind: Saved, wanted: dict[str, Any], name: str, way: str, dice: random.Random, copied: Path) -> str:
    """ "refused" by name, "harmless" where what is read is what was saved; else what nobody said."""
    shutil.copytree(kind.whole, copied)
    if not harmed(copied / name, kind.other / name, way, dice):
        return "nothing"
    wrong = [one.path.name for one in verify(copied) if one.status in WRONG]
    try:
        got = kind.read(copied)
    except (Damaged, NotOurs, FileNotFoundError, ValueError) as error:
        assert str(copied) in str(error), error
        checked = MARKER if kind.whole.name == "distillation-0" else name  # its checkpoint changes, the rest does not
        assert wrong or way == "delete" or checked == MARKER, f"{way} {name} is refused, and verify finds nothing"
        return "refused"
    return "harmless" if same(got, wanted) else "other values, and nobody said so"


def campaign(saved: dict[str, Saved], root: Path, seed: int, rounds: int) -> Counter[str]:
    dice, counts, bad = random.Random(seed), Counter(), []
    for word, kind in saved.items():
        names = [path.name for path in kind.whole.iterdir() if path.name != HISTORY]  # nobody reads the history
        shutil.copytree(kind.whole, root / word)  # a distillation writes where it reads
        wanted = kind.read(root / word)
        for name in sorted(names):
            # What is left of a folder without its marker is one of older versions; without a checkpoint, a fresh one.
            ways = [way for way in WAYS if way != "delete" or name not in (MARKER, CHECKPOINT)]
            for turn, way in enumerate([*ways, *["flip"] * 2] * rounds):
                said = outcome(kind, wanted, name, way, dice, root / f"{word}-{name}-{turn}")
                counts[said] += 1
                if said not in ("refused", "harmless", "nothing"):
                    bad.append(f"{way} {word}/{name}: {said}")
                if said == "harmless" and name != MARKER:
                    bad.append(f"{way} {word}/{name}: it is taken")
    print(f"{counts.total()} corruptions: {dict(counts)}")
    assert not bad, "\n".join(bad)
    return counts


def test_some_corruptions_of_what_is_saved(saved, tmp_path):
    assert campaign(saved, tmp_path, 0, 1)["refused"] >= 30


@pytest.mark.large
def test_many_corruptions_of_what_is_saved(saved, tmp_path):
    assert campaign(saved, tmp_path, 1, 20)["refused"] >= 600


def test_what_older_versions_saved_is_read(saved, tmp_path):
    """Without a marker, and with one that says nothing of files."""
    for word, kind in saved.items():
        shutil.copytree(kind.whole, tmp_path / "reference" / word)
        wanted = kind.read(tmp_path / "reference" / word)
        assert [one.status for one in verify(kind.whole)] == ["unchecked" if word == "distillation" else "ok"]
        for number, text in enumerate((None, f'{{"made by": "matmix", "kind": "{word}", "version": 1, "token": "a"}}')):
            old = tmp_path / f"{word}-{number}"
            shutil.copytree(kind.whole, old)
            (old / MARKER).unlink()
            if text is not None:
                (old / MARKER).write_text(text)
                assert [one.status for one in verify(old)] == ["unchecked"]
            assert same(kind.read(old), wanted)


def test_a_distillation_that_is_killed_between_its_notes_and_its_checkpoint_goes_on(saved, tmp_path, monkeypatch):
    folder, recipe = tmp_path / "killed", DistillRecipe(Stage(3), None, None, checkpoint_every=1)
    model = student(0)[0]

    def go_on(model: nn.Module) -> None:
        surgery.distill(teacher(), model, lambda step: torch.ones(2, 3, 2), recipe, folder=folder)

    class Killed(BaseException):
        pass

    for kills in range(2):  # twice in a row: the checkpoint that stands is then two notes old
        real, left = os.replace, kills
        with monkeypatch.context() as patch:

            def replace(source, target, real=real):
                nonlocal left
                if Path(target).name == CHECKPOINT:
                    if left == 0:
                        raise Killed
                    left -= 1
                return real(source, target)

            patch.setattr("os.replace", replace)
            with pytest.raises(Killed):
                go_on(copy.deepcopy(model))
    go_on(model)
    assert (folder / CHECKPOINT).is_file()
