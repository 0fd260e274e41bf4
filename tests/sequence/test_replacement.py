"""`matmix study replace`: any model's mixers are exchanged, the rest of it and its budget stay what they were."""

import json
import shlex
from dataclasses import asdict
from dataclasses import replace as changed_to
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from matmix.experiments.cli_options import parse
from matmix.experiments.cli_train import _Train
from matmix.experiments.config import RunConfig
from matmix.experiments.folder import Result, load_model
from matmix.experiments.operation import ABLATIONS, Surgery
from matmix.experiments.replacement import replace
from matmix.experiments.runner import run_study

SERIES = "itransformer(dim=8, depth=1, hidden=8, heads=2)"
FORM = {"depth": 1, "num_heads": 2, "embed_dim": 8, "patch_size": 8}
VIT = f"timm:vit_tiny_patch16_224({', '.join(f'{name}={value}' for name, value in FORM.items())})"
BERT = "hf:bert(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)"


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """Data for each kind of model."""
    rows = np.random.default_rng(0).normal(size=(200, 3)).cumsum(0)
    table = pd.DataFrame(rows, columns=["a", "b", "OT"])
    table.insert(0, "date", pd.date_range("2026-01-01", periods=200, freq="h"))
    table.to_csv(tmp_path / "walk.csv", index=False)
    texts = tmp_path / "texts"
    texts.mkdir()
    for split, count in (("train", 40), ("dev", 6)):
        lines = [
            f'it is "{word} {n} times\t{label}' for n in range(count) for label, word in enumerate(("bad", "good"))
        ]
        (texts / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return {
        SERIES: str(tmp_path / "walk.csv"),
        VIT: "cifar10:synthetic",
        BERT: str(texts),
        "encoder(dim=8, depth=1)": "recall",
    }


SETTINGS = ("lookback=12", "horizon=4", "img_size=32", "length=24")


def test_arms_of_any_model_differ_in_their_mixers_alone(data: dict[str, str], monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MATMIX_CACHE", str(tmp_path / "cache"))
    study = replace(models=tuple(data), data=tuple(data.values()), settings=SETTINGS)
    assert [task.model for task in study.tasks] == ["itransformer", "timm:vit_tiny_patch16_224", "hf:bert", "encoder"]
    assert (study.reference, study.margin) == ("default", 0.01)
    for task in study.tasks:
        made = {}
        for mixer in ("default", "mean_matrix", "dense"):
            config = RunConfig(task.task, mixer, 3, task.options, task.recipe, surgery=task.surgery)
            one = config.make_task()
            made[mixer] = config.make_model(one)
        sites = [site.name for site in config.make_surgery().sites(made["default"])]
        assert sites
        kept = {name for name in made["default"].state_dict() if not name.startswith(tuple(sites))}
        assert kept
        for mixer, model in made.items():
            state = model.state_dict()
            assert {name for name in state if not name.startswith(tuple(sites))} == kept
            assert all(torch.equal(state[name], made["default"].state_dict()[name]) for name in kept), (task, mixer)
            assert mixer == "default" or all(
                type(model.get_submodule(site)) is not type(made["default"].get_submodule(site)) for site in sites
            )


def test_a_run_is_ablated_repeated_and_loaded(data: dict[str, str], tmp_path: Path) -> None:
    training = ("steps=2", "eval_every=2", "batch_size=8")
    study = replace(models=(SERIES,), data=(data[SERIES],), settings=SETTINGS[:2], training=training)
    arms = ("default", "mean_matrix", "zero")
    small = changed_to(study, mixers=arms, seeds=(0,))
    assert run_study(small, tmp_path / "out", jobs=1, quiet=True).counts == {"finished": 3}
    found = {run.mixer: Result.read(tmp_path / "out" / run.folder) for run in small.runs()}
    for mixer, result in found.items():
        assert result is not None and set(result.ablations) == set(ABLATIONS), (mixer, result and result.notes)
        # The printed command is that of the same run.
        words = shlex.split(result.reproduce)[2:]
        name, given, changed = parse(words, _Train, "train", "")
        again = RunConfig(name, given.mixer, given.seed, asdict(given.task), changed, surgery=asdict(given.surgery))
        assert again.to_json() == json.loads(json.dumps(result.config))
        task, model = load_model(tmp_path / "out" / small.runs()[list(arms).index(mixer)].folder)
        assert isinstance(task.forward(model, next(iter(task.batches("test", 4)))), torch.Tensor)
    mse = {mixer: {how: scores["mse"] for how, scores in found[mixer].ablations.items()} for mixer in arms}
    # What has no mixing term loses nothing with it; a frozen mean is its own mean; attention is not.
    assert mse["zero"]["zero"] == found["zero"].test["mse"] == mse["zero"]["shuffle_rows"]
    assert mse["mean_matrix"]["mean"] == pytest.approx(found["mean_matrix"].test["mse"], rel=1e-6)
    assert mse["default"]["zero"] != found["default"].test["mse"] != mse["default"]["input"]


def test_what_cannot_be_joined_is_said(data: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"(?s)models: nothing joins 'hf:bert'.*texts: hf:NAME"):
        replace(models=(SERIES, "hf:bert"), data=(data[SERIES],))
    with pytest.raises(ValueError, match=r"data: nothing joins 'recall'"):
        replace(models=(SERIES,), data=(data[SERIES], "recall"))
    with pytest.raises(ValueError, match=r"settings has no setting 'look_back'.*lookback"):
        replace(models=(SERIES,), data=(data[SERIES],), settings=("look_back=12",))
    with pytest.raises(ValueError, match=r"Surgery.level .*got '' with distill"):
        Surgery(distill=3)
    with pytest.raises(ValueError, match=r"no site that can be replaced"):
        Surgery(level="module").sites(torch.nn.Linear(3, 3))


def test_arms_begin_at_a_trained_model(data: dict[str, str], tmp_path: Path) -> None:
    """The weights of the study's untouched model, by seed; new matrices nearest to the old, or taught by them."""
    training = ("steps=2", "eval_every=2", "batch_size=8")
    common = {"models": (SERIES,), "data": (data[SERIES],), "settings": SETTINGS[:2], "training": training}
    first = changed_to(replace(**common), mixers=("default",), seeds=(0,))
    run_study(first, tmp_path / "out", jobs=1, quiet=True)
    second = replace(**common, start=str(tmp_path / "out"), init="projected", distill=3)
    (trained,) = (load_model(tmp_path / "out" / run.folder)[1].state_dict() for run in first.runs())
    made, said = {}, {}
    for mixer in ("default", "dense", "elementwise", "identity"):  # of which the last has nothing to learn
        task = second.tasks[0]
        config = RunConfig(task.task, mixer, 0, task.options, task.recipe, surgery=task.surgery)
        said[mixer] = []
        made[mixer] = config.make_model(config.make_task(), notes=said[mixer]).state_dict()
        assert all(torch.equal(made[mixer][name], trained[name]) for name in trained if ".mixer." not in name)
    assert all(torch.equal(made["default"][name], trained[name]) for name in trained)
    assert [len(lines) for lines in said.values()] == [1, 3, 4, 3]
    assert "begins with" in said["dense"][0] and "learnt from the old ones for 3 steps" in said["dense"][2]
    assert "begins fresh: " in said["elementwise"][2]
