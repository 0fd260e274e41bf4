"""The regimes: their models have the published number of parameters, their recipes the published rates."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from matmix.experiments.config import RunConfig
from matmix.experiments.run import execute
from sequence.encoder import Encoder
from sequence.regimes import ELSEWHERE, PRETRAINING, PUBLISHED, REGIMES, TASKS, Regime, regime
from sequence.regimes.table import markdown_table
from sequence.tasks.image import Image
from sequence.tasks.listops import ListOps
from sequence.tasks.pathfinder import Pathfinder
from sequence.tasks.pixel_pretraining import ImagePretraining, PathfinderPretraining
from sequence.tasks.pretraining import ListOpsPretraining
from sequence.tasks.retrieval import Retrieval
from sequence.tasks.settings import PairSettings
from sequence.tasks.text import Text
from tests.sequence import written

CELLS = [(name, task) for name in REGIMES for task in TASKS if (name, task) != ("nystrom", "pathx")]
# Rows of the published embeddings; images have the 256 grey levels where they are read as tokens, else one channel.
VOCABULARY = {
    "lra2020": {"listops": 17, "text": 257, "retrieval": 257, "image": 256, "pathfinder": 256, "pathx": 256},
    "nystrom": {"listops": 32, "text": 512, "retrieval": 512, "image": 512, "pathfinder": 512},
    "s4": {"listops": 18, "text": 135, "retrieval": 98},
    "s5": {"listops": 20, "text": 135, "retrieval": 98},
    "mega": {"listops": 18, "text": 257, "retrieval": 257},
    "spt": {"listops": 19, "text": 136, "retrieval": 99},
}
LENGTH = {"listops": 2048, "text": 4096, "retrieval": 4096, "image": 1024, "pathfinder": 1024, "pathx": 16_384}
CLASSES = {"listops": 10, "image": 10}


def encoder(found: Regime, mixer: str) -> Encoder:
    """The model of a regime, without numbers."""
    known = {field.name for field in dataclasses.fields(PairSettings)}
    settings = PairSettings(**{name: value for name, value in found.settings.items() if name in known})
    vocabulary = VOCABULARY[found.name.partition("-")[0]].get(found.task, 0)
    with torch.device("meta"):
        return settings.encoder(
            mixer,
            0,
            grid=(LENGTH[found.task],),
            head="pair" if found.task == "retrieval" else "class",
            outputs=CLASSES.get(found.task, 2),
            vocabulary=vocabulary,
            channels=0 if vocabulary else 1,
        )


@pytest.mark.parametrize(("name", "task"), CELLS)
def test_parameters_are_those_of_the_published_model(name: str, task: str) -> None:
    found = regime(name, task)
    ours = sum(parameter.numel() for parameter in encoder(found, found.mixer).parameters())
    theirs = ours + sum(found.count.lacks.values())
    one_digit = found.count.millions > 1 and len(str(found.count.millions).partition(".")[2]) == 1
    assert theirs / 1e6 == pytest.approx(
        found.count.millions, abs=0.056 if one_digit else 0.0065
    )  # text has about 135 characters
    if found.attention != found.mixer:
        assert sum(parameter.numel() for parameter in encoder(found, found.attention).parameters()) > 0


@pytest.mark.parametrize("name", sorted(REGIMES))
def test_every_regime_says_where_it_is_from(name: str) -> None:
    function = getattr(REGIMES[name], "func", REGIMES[name])
    assert len(function.__doc__) > 200
    for task in TASKS[:5]:
        found = regime(name, task)
        assert (found.name, found.task) == (name, task) and found.epochs > 1 and found.tokens > 1e8
        own_positions = found.settings["position"] != "none"
        assert ("rotary=True" in found.attention) != own_positions


# Regime, task, step, rate: from the sources' formulas at their steps, counted from 1.
RATES = [
    ("s4", "listops", 12_000, 0.01),
    ("s4", "listops", 66_000, 0.005),  # half of the cosine from 12,000 to 120,000
    ("s4", "retrieval", 45_960, 0.005 * (1 + math.cos(math.pi * 40_960 / 45_000))),  # ends before the cosine does
    ("s4", "pathx", 50_000, 0.001),
    ("s5", "text", 1, 0.004),
    ("s5", "listops", 1920, 0.003),
    ("mega", "listops", 3_000, 0.001),
    ("mega", "listops", 46_500, 0.0005),  # half-way down from 3,000 to 90,000
    ("mega", "pathx", 75_000, 0.0025),  # half-way, squared
    ("lra2020", "listops", 1_000, 0.05 / math.sqrt(1_000)),
    ("lra2020", "listops", 4_000, 0.05 / math.sqrt(4_000)),
    ("lra2020", "text", 20_000, 0.05 / math.sqrt(20_000)),
    ("lra2020", "retrieval", 5_000, 0.05 / math.sqrt(8_000) * 5 / 8),  # the warm-up never ends
    ("lra2020", "pathfinder", 312, 1e-3),
    ("nystrom", "listops", 1, 4e-6),
    ("nystrom", "listops", 1_000, 1e-4),
    ("nystrom", "listops", 5_000, 4e-10),
    ("spt", "listops", 2_000, 1e-4),
    ("spt", "listops", 300_000, 1e-4),
    ("spt-causal", "retrieval", 5_000, 1e-3),
]


@pytest.mark.parametrize(("name", "task", "step", "rate"), RATES)
def test_rates_are_the_published_ones(name: str, task: str, step: int, rate: float) -> None:
    # The sources count the steps from 0 or from 1: half a step of the schedule is what that can change.
    assert regime(name, task).recipe.lr_at(step - 1) == pytest.approx(rate, rel=2e-3)


def test_the_cosine_of_s5_is_near_its_own() -> None:
    """There it begins at step 0 and ends an epoch early."""
    recipe = regime("s5", "listops").recipe
    rise = recipe.rise
    theirs = [0.0015 * (1 + math.cos(math.pi * min(1, s / (recipe.steps - rise)))) for s in range(rise, recipe.steps)]
    ours = [recipe.lr_at(step) for step in range(rise, recipe.steps)]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 0.041 * recipe.lr


def test_parameters_with_rates_of_their_own() -> None:
    """Every group names parameters of the regime's own mixer."""
    for name in ("s4", "s5"):
        for task in TASKS:
            found = regime(name, task)
            names = [parameter for parameter, _ in encoder(found, found.mixer).named_parameters()]
            taken = [[each for each in names if group.names(each)] for group in found.recipe.parsed_groups()]
            assert taken and all(taken) and not any("head" in each for each in taken[0])


def test_published_numbers_stand_under_one_regime() -> None:
    assert set(PUBLISHED) <= set(REGIMES)
    averages = {
        "lra2020": ("Transformer", 54.39),
        "nystrom": ("PoNet", 61.05),
        "s5": ("S5", 87.46),
        "mega": ("Mega", 88.21),
    }
    for name, (model, average) in averages.items():
        (found,) = (row for row in PUBLISHED[name] if row.model == model)
        scores = [score for score in found.accuracy.values() if score is not None]
        assert sum(scores) / len(scores) == pytest.approx(average, abs=0.01)
    s4d = regime("s4", "pathx").published
    assert s4d["S4D-Lin"] is None and s4d["S4D-LegS"] == 91.95
    assert regime("s4-mlp", "pathx").published == {} == regime("spt", "text").published
    mine = {id(row) for rows in PUBLISHED.values() for row in rows}
    assert ELSEWHERE and not mine & {id(row) for row, _ in ELSEWHERE} and all(reason for _, reason in ELSEWHERE)


def test_from_scratch_costs_what_both_phases_cost() -> None:
    for task in TASKS:
        tuning, before, scratch = regime("spt", task), regime("spt", task, PRETRAINING), regime("spt-scratch", task)
        documents = 2 if task == "retrieval" else 1
        seen = [each.recipe.steps * each.recipe.batch_size * pair
                for each, pair in ((tuning, documents), (before, 1), (scratch, documents))]  # fmt: skip
        assert seen[0] + seen[1] == pytest.approx(seen[2], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("s3", "text", "unknown recipe 's3'; known: default, lra2020, nystrom, s4"),
        ("nystrom", "pathx", "the regime 'nystrom' has no 'pathx'"),
    ],
)
def test_wrong_names_say_what_there_is(name: str, task: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regime(name, task)


TASK_OF = {
    "listops": ListOps(), "text": Text(), "retrieval": Retrieval(), "image": Image(), "pathfinder": Pathfinder(),
    "pathx": Pathfinder(img_size=128),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_tasks_take_all_settings_of_a_regime(task: str) -> None:
    """They are part of what a run is, and what is changed of them is said."""
    for name in (name for name, found in CELLS if found == task):
        found = regime(name, task)
        named, recipe = TASK_OF[task].named_recipe(name)
        assert recipe == found.recipe == named.recipe() and named.arm("") == found.mixer and named.arm("ssd") == "ssd"
        assert {key: getattr(named, key) for key in found.settings} == dict(found.settings) and named.title() == name
        facts = named.regime_facts()
        assert facts == {"regime": name}
        shown = {row.partition(",")[0]: scores for row, scores in named.published(recipe).items()}
        assert shown.keys() == {model.partition(",")[0] for model in found.published}
        assert all(scores.get("accuracy", 0) <= 1 for scores in shown.values())
        assert named.published(dataclasses.replace(recipe, steps=recipe.steps - 1)) == {}
        smaller = dataclasses.replace(named, dim=16).regime_facts()
        assert smaller == {"regime": f"{name}, dim=16 instead of {named.dim}"}
        assert dataclasses.replace(named, dim=16).published(recipe) == {}
    pretraining = {"listops": ListOpsPretraining, "image": ImagePretraining, "pathfinder": PathfinderPretraining}
    for name in PRETRAINING if task in pretraining else ():
        begun, recipe = pretraining[task]().named_recipe(name)
        tuned, _ = TASK_OF[task].named_recipe(name)
        assert (
            recipe == begun.recipe() and begun.arm("") == tuned.arm("") and begun.share == (0.1, 0.5)[task != "listops"]
        )
        shared = ("dim", "depth", "mlp_ratio", "position", "norm", "prenorm", "embedding_std")
        assert all(getattr(begun, field) == getattr(tuned, field) for field in shared)


def test_a_run_has_the_mixer_of_its_regime(tmp_path) -> None:
    small = {**written.LISTS._asdict(), "train_examples": 40, "val_examples": 10, "test_examples": 10, "length": 32}
    small |= {"dim": 16, "depth": 1, "cache": str(tmp_path / "cache")}
    for name in ("s5", "nystrom"):
        task, recipe = ListOps().named_recipe(name)
        options = {**dataclasses.asdict(task), **small}
        short = {"steps": 3, "batch_size": 8, "warmup": 1.0, "schedule_steps": 0}
        config = RunConfig("listops", "", 0, options, {**dataclasses.asdict(recipe), **short})
        assert RunConfig.from_json(config.to_json()) == config and f"listops-{name}-seed-0" in config.name
        result = execute(config, tmp_path / name)
        assert result.status == "finished" and result.facts["regime"].startswith(f"{name}, dim=16 instead"), (
            result.error
        )
        assert f"--task.regime {name}" in result.reproduce and not result.notes
    with pytest.raises(ValueError, match="name the mixer"):
        ListOps(**small).model("", 0)
    with pytest.raises(ValueError, match="img_size must be 32, or 128 for Path-X"):
        Pathfinder(img_size=64).named_recipe("s4")


def test_the_table_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "regimes.md").read_text()
    assert page.split("<!-- regimes -->\n")[1].split("\n<!-- /regimes -->")[0] == markdown_table()
