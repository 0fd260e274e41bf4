"""GLUE: what its files hold, what is wrong with them, and the way from a pretraining to a tuned model."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import matthews_corrcoef

from matmix.experiments.config import RunConfig
from matmix.experiments.folder import Result
from matmix.experiments.run import execute
from sequence.language.data.glue import TASKS, parts, read
from sequence.language.glue import Glue
from sequence.language.mlm import MLM
from sequence.language.recipes import TUNING, tuning_recipes
from sequence.language.runs import checkpoint, save_pretrained
from sequence.metrics import Matthews
from sequence.studies.glue import glue
from tests.sequence import written

TINY: dict[str, Any] = {"dim": 8, "depth": 1, "length": 12}
MIXER = "attention(head_dim=4)"
STEPS = {"steps": 3, "batch_size": 8, "eval_every": 3, "log_every": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All nine tasks, a tokenizer, and a study of a pretraining with one run."""
    root = tmp_path_factory.mktemp("glue")
    written.glue(root / "glue", *TASKS)
    (root / "text.txt").write_text("\n".join(written.sentences(60)))
    options = {**TINY, "data": str(root / "text.txt"), "vocabulary": 80, "cache": str(root / "cache")}
    run = root / "pre" / "runs" / "mlm" / "attention" / "seed-0"
    assert execute(RunConfig("sequence.language.mlm:MLM", MIXER, 0, options, STEPS), run).status == "finished"
    study = {
        "name": "mlm",
        "mixers": [MIXER],
        "seeds": [0],
        "note": "?",
        "tasks": [{"task": "mlm", "options": options}],
    }
    (root / "pre" / "study.json").write_text(json.dumps(study))
    return root


def task(folder: Path, name: str, **options: Any) -> Glue:
    return Glue(**{**TINY, "name": name, "data": str(folder / "glue"), "tokens": str(folder / "pre"),
                   "cache": str(folder / "cache"), **options})  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_every_task(name, folder):
    """Labels and texts of the files, quotes among them; each published metric on what the majority says."""
    for part in parts(name):
        examples = list(read(str(folder / "glue"), name, part))
        assert len(examples) == (48 if part == "train" else 12)
        assert {len(example.texts) for example in examples} == {len(TASKS[name].texts)}
        assert all(text.endswith(' "') for example in examples for text in example.texts)
        assert {example.label for example in examples} == set(range(len(TASKS[name].labels))) or name == "stsb"
    found = task(folder, name)
    train, val = (found.parts()[split] for split in ("train", "val"))
    assert (len(train.labels), len(val.labels)) == (43, 5)
    baseline = found.baselines()
    assert [list(scores) for scores in baseline.values()] == [list(TASKS[name].metrics)]
    assert found.metric == TASKS[name].metrics[0]
    batch = next(found.batches("test", 100))
    rows = batch.x["attention_mask"].sum(1)
    assert (batch.x["input_ids"][:, 0] == 2).all() and rows.max() <= 12 and (rows[:-1] >= rows[1:]).all()
    assert (batch.x["token_type_ids"].sum(1) > 0).all() == (len(TASKS[name].texts) == 2)
    assert torch.equal(batch.x["attention_mask"] == 0, batch.x["input_ids"] == 0)
    later = next(itertools.islice(found.batches("train", 8, seed=1), 7, None))
    again = next(found.batches("train", 8, seed=1, start=7))
    assert torch.equal(later.x["input_ids"], again.x["input_ids"]) and torch.equal(later.y, again.y)
    recipes = tuning_recipes(name)
    assert set(recipes) == set(TUNING) - ({"hydra", "hydra-ablation"} if name == "wnli" else set())
    for protocol in recipes:
        same, recipe = found.named_recipe(protocol)
        assert same.as_published(recipe) and not dataclasses.replace(same, dim=9, length=9).as_published(recipe)
        assert recipe.steps > 10 and not same.published(recipe)  # no published pretraining stands behind it


BROKEN = {
    "columns": ("rte", "dev", "1\ta\tb", "line 14: 3 columns; allowed: 4, as in the header: index, sentence1"),
    "quoted tab": ("sst2", "dev", '1\t"a\tb"\t1', "line 14: 4 columns; allowed: 3.*quotes are letters"),
    "label": ("rte", "train", "1\ta\tb\tmaybe", "line 50: label 'maybe'; allowed: entailment or not_entailment"),
    "number": ("sst2", "train", "1\ta\t2", "line 50: label '2'; allowed: 0 or 1"),
    "cola": ("cola", "dev", "x\t1\ta", "line 13: 3 columns; allowed: 4: source, label, mark, sentence"),
    "score": ("stsb", "dev", "1\ta\tb\t5.1", "line 14: score '5.1'; allowed: a number from 0 to 5"),
    "empty": ("sst2", "dev", "1\t \t1", "line 14: text ' '; allowed: a text of at least one letter"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_damaged_lines(case, folder, tmp_path):
    name, part, line, error = BROKEN[case]
    written.glue(tmp_path / "glue", name)
    file = tmp_path / "glue" / TASKS[name].folder / f"{part}.tsv"
    file.write_text(file.read_text() + line + "\n")
    options = {"data": str(tmp_path / "glue"), "cache": str(tmp_path)}
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}, {error}"):
        task(folder, name, **options).parts()
    whole = task(folder, name, broken="skip", **options)
    assert len(whole.parts()["test"].labels) == 12 and whole.facts()["left out as damaged"] == 1


def test_wrong_folders_and_settings(folder, tmp_path):
    written.glue(tmp_path, "rte")
    (tmp_path / "RTE" / "dev.tsv").write_text("index\tsentence\tlabel\n")
    for options, error in (
        (
            {"name": "rte", "data": str(tmp_path)},
            "line 1: the columns are 'index, sentence, label'; allowed: a header ",
        ),
        ({"name": "sst2", "data": str(tmp_path)}, "no labels for train of sst2; allowed: train.tsv or in_domain_train"),
        ({"name": "sst2", "data": str(tmp_path / "no/where")}, "is no folder"),
    ):
        with pytest.raises(ValueError, match=error):
            task(folder, **options).parts()
    for options, error in (
        ({"name": "sst"}, "name must be one of cola.*did you mean sst2"),
        ({"tokens": "wordpiece"}, "a vocabulary is made by `matmix train mlm`"),
        ({"init_task": "mnli"}, "needs init_from"),
        ({"held_out": 0.0}, "held_out must be above 0"),
    ):
        with pytest.raises(ValueError, match=error):
            Glue(**options)
    with pytest.raises(ValueError, match="without init_from, name a tokenizer"):
        Glue().tokenizer()


def test_weights_of_a_pretraining_go_on(folder, tmp_path):
    """Into a task, from there into another, and through a folder of transformers; nothing that does not fit."""
    pre = folder / "pre"
    run = checkpoint(pre, MIXER, 0)
    given = load_file(run / "best.safetensors")
    begun = task(folder, "mnli", init_from=str(pre), tokens="").model(MIXER, 0)
    encoder = [name for name in given if name.startswith("matmix.")]
    assert encoder and all(torch.equal(begun.state_dict()[name], given[name]) for name in encoder)
    save_pretrained(run, tmp_path / "saved")
    other = task(folder, "mnli", init_from=str(tmp_path / "saved"), tokens="").model(MIXER, 0)
    assert all(torch.equal(other.state_dict()[name], given[name]) for name in encoder)
    options = dataclasses.asdict(task(folder, "mnli", init_from=str(pre), tokens=""))
    tuned = tmp_path / "runs" / "mnli" / "seed-0"
    result = execute(RunConfig("sequence.language.glue:Glue", MIXER, 0, options, STEPS), tuned)
    assert result.status == "finished" and set(result.tests) == {"test@mismatched"}, result.error
    assert "begun at" in result.facts and result.baselines["most frequent class"]["accuracy"] == pytest.approx(1 / 3)
    after = task(folder, "rte", init_from=str(tmp_path), init_task="mnli").model(MIXER, 0)
    weights = load_file(tuned / "best.safetensors")
    assert all(torch.equal(after.state_dict()[name], weights[name]) for name in weights if "classifier" not in name)
    assert after.classifier.linear.weight.shape[0] == 2
    small = str(written.tokenizer(tmp_path / "small.json", vocabulary=60))
    Path(tmp_path / "shuffled").mkdir()
    for options, mixer, error in (
        ({"init_from": str(pre), "dim": 16}, MIXER, "settings of .* are others: dim is 8 there and 16 here"),
        (
            {"init_from": str(pre), "tokens": small},
            MIXER,
            r"has 60 words, and the checkpoint .* 62: take the tokenizer",
        ),
        ({"init_from": str(tmp_path / "saved"), "tokens": small}, MIXER, r"has 60 words, and the checkpoint"),
        ({"init_from": str(tmp_path / "saved")}, "identity", "mixer is 'attention.* there and 'identity' here"),
        ({"init_from": str(pre)}, "identity", "no run of the mixer 'identity' with seed 0"),
        ({"init_from": str(tmp_path / "shuffled")}, MIXER, "neither the folder of a run"),
    ):
        with pytest.raises(ValueError, match=error):
            task(folder, "rte", **{"tokens": str(pre), **options}).model(mixer, 0)


def test_a_study_goes_on_with_another(folder):
    study = glue(str(folder / "pre"), str(folder / "glue"), steps=2).only(["cola", "rte"])
    runs = study.runs()
    assert [(run.setting, run.mixer) for run in runs] == [
        (name, arm) for name in ("cola", "rte") for arm in (MIXER, f"{MIXER}, from scratch")
    ]
    assert all(run.config.options["dim"] == 8 and run.config.recipe["steps"] == 2 for run in runs)
    assert [run.config.options["init_from"] != "" for run in runs] == [True, False] * 2
    study.check()  # every model can be built


def test_matthews_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    for said, true in [
        *(torch.randint(2, (2, 20), generator=generator) for _ in range(20)),
        (torch.ones(9, dtype=torch.long), torch.randint(2, (9,), generator=generator)),
    ]:
        metric = Matthews()
        metric.update(said[:5], true[:5])
        metric.update(said[5:], true[5:])
        assert float(metric.compute()) == pytest.approx(matthews_corrcoef(true, said), abs=1e-6)


def test_settings_of_masked_models(folder):
    for options, error in (
        ({"rate": 0.0}, r"rate must be a finite number in \(0, 1\)"),
        ({"hidden_share": 0.9, "other_share": 0.2}, "must be at most 1 together"),
        ({"streaming": True}, "reads all texts first"),
        ({"length": 2}, r"length must be a whole number in \[3, "),
    ):
        with pytest.raises(ValueError, match=error):
            MLM(**options)
    result = Result.read(checkpoint(folder / "pre", MIXER, 0))
    assert result is not None and result.facts["vocabulary"] == 62 and "unigram" in result.baselines
    for name in ("hydra", "hydra-ablation"):
        found, recipe = MLM().named_recipe(name)
        assert found.as_published(recipe) and found.streaming
        assert bool(found.published(recipe)) == (name == "hydra-ablation")
        assert not dataclasses.replace(found, rate=0.2).published(recipe)
        assert not found.published(dataclasses.replace(recipe, steps=100))


def test_published_scores_stand_beside_their_own_protocol(folder, tmp_path):
    """A pretraining and a tuning of one protocol, both in every setting and step; nothing beside any other pair."""
    for before, protocol, settings, there in (
        ("hydra-ablation", "hydra-ablation", {}, True),
        ("hydra-ablation", "hydra", {}, False),
        ("hydra-ablation", "hydra-ablation", {"depth": 11}, False),
        ("hydra-ablation", "hydra-ablation", {"steps": 9}, False),
        ("", "hydra-ablation", {}, False),
    ):
        run = tmp_path / f"{before}-{protocol}-{len(settings)}-{there}-{''.join(settings)}"
        run.mkdir()
        pretraining, recipe = MLM().named_recipe(before or "default")
        steps = {key: value for key, value in settings.items() if key == "steps"}
        options = {**dataclasses.asdict(pretraining), **{k: v for k, v in settings.items() if k == "depth"}}
        config = RunConfig("sequence.language.mlm:MLM", MIXER, 0, options, {**dataclasses.asdict(recipe), **steps})
        (run / "config.json").write_text(json.dumps(config.to_json()))
        (run / "result.json").write_text("{}")
        tuning, how = task(folder, "cola", init_from=str(run)).named_recipe(protocol)
        found = tuning.published(how)
        assert bool(found) == there
        if there:
            assert found["quasiseparable, dd, tables 2 and 10 of 2407.09941"] == {"matthews": 0.484}
