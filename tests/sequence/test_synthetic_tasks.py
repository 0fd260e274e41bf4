"""The tasks of the synthetic suites: sizes, suites, further tests, and what their baselines say."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch

from matmix.experiments.folder import Result
from matmix.experiments.run import RunConfig, execute
from sequence.data.labels import IGNORED
from sequence.studies.mqar import mqar
from sequence.tasks.continuous_mqar import ContinuousMQAR
from sequence.tasks.copying import Copying
from sequence.tasks.induction import Induction
from sequence.tasks.mad import BASELINES, Mad
from sequence.tasks.mad_grid import SWEEP, score, settings
from sequence.tasks.mqar import MQAR, CompositionalMQAR, ForgettingMQAR
from sequence.tasks.pointer import Pointer

ROWS = {"vocabulary": 80, "length": 36, "pairs": 4, "train_examples": 64, "eval_examples": 40, "dim": 8}
PARTS = ((40, 4, 48), (60, 9, 32))

# ------------------------------------------------------------------ MQAR


@pytest.mark.parametrize("cls", [MQAR, CompositionalMQAR, ForgettingMQAR])
def test_rows_of_several_sizes(cls: type[MQAR]) -> None:
    """Batches of one size each, the sizes in turn; every row of an epoch once; any step can be the first."""
    task = cls(**ROWS, parts=PARTS, tests_at=((72, 9),))
    assert task.tests() == ("test@72x9",) and task.width == 60
    steps = [batch.x for batch in itertools.islice(task.batches("train", 16, seed=1), 20)]
    assert [x.shape[1] for x in steps[:10]] == [36] * 4 + [40] * 3 + [60] * 2 + [36]
    for length, count in ((36, 64), (40, 48), (60, 32)):
        assert len(torch.cat([x for x in steps[:9] if x.shape[1] == length]).unique(dim=0)) == count
    assert not torch.equal(steps[0], steps[9])
    for start in (0, 3, 4, 8, 9, 17):
        assert torch.equal(next(task.batches("train", 16, seed=1, start=start)).x, steps[start]), start
    for split in ("val", "test"):
        sizes = Counter(x.shape[1] for batch in task.batches(split, 7) for x in batch.x.split(1))
        assert sizes == {36: 40, 40: 40, 60: 40}
    longer = next(task.batches("test@72x9", 40))
    assert longer.x.shape == (40, 72) and ((longer.y != IGNORED).sum(1) == 9).all()


def test_suites() -> None:
    task, recipe = MQAR(length=256, pairs=16).named_recipe("figure2")
    assert (task.length, task.pairs, task.parts, task.fill) == (256, 16, (), False)
    assert recipe.batch_size == 256 and recipe.steps == 64 * 390
    for cls, lengths in ((MQAR, (512, 1024)), (CompositionalMQAR, (1024, 2048)), (ForgettingMQAR, (1024, 2048))):
        task, recipe = cls().named_recipe("mixed")
        assert task.width == 256 and tuple(length for length, _ in task.tests_at[-2:]) == lengths
        assert recipe.steps == 32 * (390 + 4 * 78)
    with pytest.raises(ValueError, match="no recipe 'figure2'; it has: default, mixed"):
        ForgettingMQAR().named_recipe("figure2")


def test_suites_are_studies() -> None:
    """Every rate at every size and width, with the settings that `--recipe` gives."""
    study = mqar(dims=(64, 128))
    assert len(study.tasks) == 4 * 2 and len(study.recipes) == 4 and len(study.runs()) == 32 * len(study.mixers)
    task = study.runs()[0].config.make_task()
    assert task == MQAR(length=64, pairs=4, dim=64) and study.runs()[0].config.make_recipe().lr == 1e-4
    study = mqar(suite="mixed", task="mqar-forgetting", dims=(32,), rates=(1e-3,))
    config = study.runs()[0].config
    assert config.make_task() == dataclasses.replace(ForgettingMQAR().named_recipe("mixed")[0], dim=32)
    assert config.make_recipe().steps == ForgettingMQAR().named_recipe("mixed")[1].steps
    for wrong in ({"lengths": (65,)}, {"suite": "mixed", "lengths": (64,)}):
        with pytest.raises(ValueError, match=r"lengths are among \[64, 128, 256, 512\]"):
            mqar(**wrong)


def test_a_query_asks_for_both_halves_and_the_newest_value() -> None:
    x, y = CompositionalMQAR(**ROWS).data("test")
    for tokens, labels in zip(x.tolist(), y.tolist(), strict=True):
        value = {tuple(tokens[at : at + 2]): tokens[at + 2] for at in range(0, 12, 3)}
        assert len({a for a, _ in value}) == len({b for _, b in value}) == 2 and len(value) == 4
        asked = {(tokens[at - 1], tokens[at]): label for at, label in enumerate(labels) if label != IGNORED}
        assert asked == value
    x, y = ForgettingMQAR(**ROWS, updates=3).data("test")
    for tokens, labels in zip(x.tolist(), y.tolist(), strict=True):
        newest = dict(zip(tokens[0:14:2], tokens[1:14:2], strict=True))
        assert {tokens[at]: label for at, label in enumerate(labels) if label != IGNORED} == newest
    first = ForgettingMQAR(**ROWS, updates=2).baselines()["the first value of the key"]["accuracy"]
    assert 0.5 <= first < 0.6  # half of the keys, and updates that say the same again


@pytest.mark.parametrize(
    ("cls", "wrong", "message"),
    [
        (CompositionalMQAR, {"pairs": 5}, "must be a square number, got 5"),
        (CompositionalMQAR, {"pairs": 9}, "at most length/6 = 6 with compositional keys and length=36, got 9"),
        (CompositionalMQAR, {"vocabulary": 36}, "larger than length=36, got 36"),
        (CompositionalMQAR, {"power": 0.0}, r"power must be a finite number in \(0, 10\], got 0.0"),
        (ForgettingMQAR, {"updates": 5}, "updates must be from 0 to pairs=4, got 5"),
        (ForgettingMQAR, {"updates": 4, "pairs": 8}, "need a length of 40, got 36"),
        (MQAR, {"parts": ((35, 4, 9),)}, "length must be even, got 35"),
        (MQAR, {"parts": PARTS, "train_examples": 0}, "new rows at every step are of one size"),
        (ContinuousMQAR, {"vocabulary": 63}, "vocabulary must be even"),
        (ContinuousMQAR, {"pairs": 16}, r"vocabulary/2 = 40, got 128"),
        (Induction, {"length": 2}, "answer must be from 1 to length - 2 = 0, got 1"),
        (Copying, {"form": "past"}, "form must be one of 'copy', 'prefix_ngram', 'suffix_ngram', got 'past'"),
        (Copying, {"length": 60}, "must hold one example of longest=50, 103 tokens, got 60"),
        (Copying, {"shortest": 60}, "at least 1 and in order, got 60 and 50"),
        (Pointer, {"size": 1}, r"Pointer.size must be a whole number in \[2, 1e\+09\], got 1"),
        (Mad, {"kind": "recal"}, "kind must be one of 'recall'"),
        (Mad, {"copied": 3}, "copied is a setting of selective_copying only, got copied=3 with kind='recall'"),
        (Mad, {"kind": "noisy_recall", "noise": 1.0}, r"noise must be a finite number in \[0, 1\), or None, got 1.0"),
        (Mad, {"length": 33}, "length must be even and at least 4, got 33"),
        (Mad, {"kind": "selective_copying", "copied": 128}, "below .length - 1. / 2, got 128"),
        (Mad, {"kind": "fuzzy_recall", "vocabulary": 6}, "leaves 5 tokens for keys and values, 6 are needed"),
    ],
)
def test_wrong_sizes_say_so(cls: type, wrong: dict, message: str) -> None:
    rows = ROWS if issubclass(cls, MQAR) else {"vocabulary": 80} if cls in (ContinuousMQAR, Induction) else {}
    with pytest.raises(ValueError, match=message):
        cls(**{**rows, **wrong})


@pytest.mark.slow
def test_attention_looks_up_what_a_filter_cannot(tmp_path: Path) -> None:
    """400 steps, twice what attention needs; what is left to a fixed filter is the best guess by position, 0.29."""
    options = {"train_examples": 0, "eval_examples": 500, "vocabulary": 64, "length": 32, "pairs": 4}
    recipe = {"steps": 400, "batch_size": 64, "lr": 3e-3, "lr_end": 0.1, "warmup": 0.05, "weight_decay": 0.0}
    scores = {}
    for mixer in ("attention(causal=True)", "global_filter"):
        folder = tmp_path / mixer
        config = RunConfig("mqar", mixer, 0, options, {**recipe, "clip": 1.0, "eval_every": 100})
        assert execute(config, folder).status == "finished"
        scores[mixer] = Result.read(folder).test["accuracy"]
    assert scores["attention(causal=True)"] > 0.95 and scores["global_filter"] < 0.4


# ------------------------------------------------------------------ MAD


@pytest.mark.parametrize("kind", BASELINES)
def test_mad_learns_and_scores_what_it_says(kind: str) -> None:
    small = {"recall": {"length": 32}, "fuzzy_recall": {"length": 48}, "noisy_recall": {"length": 32}}
    more = {"selective_copying": {"length": 40, "copied": 8}, "memorization": {"vocabulary": 32}}
    task = Mad(kind=kind, train_examples=32, eval_examples=32, dim=8, depth=1, **{**small, **more}.get(kind, {}))
    model = task.model("retention(heads=2)", 0)
    batch = next(task.batches("train", 8))
    output = task.forward(model, batch)
    task.loss(output, batch).backward()
    assert output.shape == (8, task.width, task.ids) and all(p.grad is not None for p in model.parameters())
    assert batch.x.shape[1] == task.width
    test = next(task.batches("test", 32))
    metrics = task.metrics()
    for metric in metrics.values():
        metric.update(test.y, test.y)
        assert metric.compute() == 1
    chance = task.baselines()["chance"]["micro"]
    random = torch.randint(task.ids, test.y.shape, generator=torch.Generator().manual_seed(0))
    labelled = test.y != IGNORED
    assert (random[labelled] == test.y[labelled]).double().mean().item() <= chance + 3 * (
        chance / labelled.sum()
    ) ** 0.5
    if kind.endswith("recall"):
        with pytest.raises(ValueError, match="needs causal mixers"):
            task.model("attention", 0)


def test_macro_accuracy_counts_every_class_once() -> None:
    """Batches of their own: (1 + 0) / 2, then (1/2 + 1 + 0 for what is only said) / 3."""
    metric = Mad(vocabulary=16, length=32).metrics()["accuracy"]
    metric.update(torch.tensor([[3, 3, 3, 3]]), torch.tensor([[3, 3, 4, -100]]))
    metric.update(torch.tensor([[3, 5, 4]]), torch.tensor([[3, 3, 4]]))
    assert metric.compute() == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_weights_are_not_chosen_on_the_test() -> None:
    sizes = {"kind": "compression", "train_examples": 8, "eval_examples": 8}
    for published in (False, True):
        task = Mad(**sizes, test_as_validation=published)
        assert torch.equal(task.data("val")[0], task.data("test")[0]) is published
        assert ("as published" in task.facts()["weights are chosen on"]) is published


def test_the_published_training_of_mad() -> None:
    task, recipe = Mad(kind="recall").named_recipe("published")
    assert task.test_as_validation and recipe.precision == "bf16"
    assert (recipe.steps, recipe.batch_size, recipe.schedule, recipe.clip) == (20_000, 128, "constant", 0.0)
    assert Mad(kind="memorization").recipe().steps == 400
    with pytest.raises(ValueError, match="no recipe 'paper'; it has: default, published"):
        Mad().named_recipe("paper")


def test_the_grid_of_mad() -> None:
    found = settings()
    assert len(found) == 66 and Counter(one.options["kind"] for one in found) == {
        "recall": 11, "fuzzy_recall": 11, "noisy_recall": 14, "selective_copying": 13, "compression": 11,
        "memorization": 6,
    }  # fmt: skip
    assert len({Mad(**one.options) for one in found}) == 66 and len(SWEEP) == 6
    assert [one.label for one in settings(["memorization"])][:2] == ["memorization", "memorization vocabulary=512"]
    runs = [
        ({"kind": "recall"}, 0.5),
        ({"kind": "recall", "length": None}, 0.7),
        ({"kind": "recall", "length": 256}, 0.1),
    ]
    assert score([*runs, ({"kind": "compression"}, 0.3)]) == pytest.approx(
        {"recall": 0.4, "compression": 0.3, "mean": 0.35}
    )


# ------------------------------------------------------------------ longer than in training


@pytest.mark.parametrize("behind", [False, True])
def test_a_pointer_counts_from_the_first_token(behind: bool) -> None:
    x, y = Pointer(vocabulary=9, size=5, behind=behind, train_examples=64, eval_examples=30).data("test")
    for tokens, labels in zip(x.tolist(), y.tolist(), strict=True):
        (last,) = [at for at, label in enumerate(labels) if label != IGNORED]
        assert set(tokens[last + 1 :]) <= {10} and 10 not in tokens[: last + 1]
        real = tokens[: last + 1]
        place, row = real.count(0), [token for token in real if token]
        assert len(row) == 5 and labels[last] == row[place]
        assert real == ([*row, *[0] * place] if behind else [*[0] * place, *row])


@pytest.mark.parametrize(
    ("task", "length"),
    [
        (Induction(length=12, train_examples=64, eval_examples=9), lambda times: 12 * times + 1),
        (Copying(shortest=3, longest=6, length=24, eval_examples=9), lambda times: 2 * 6 * times + 2),
        (ContinuousMQAR(vocabulary=64, pairs=4, train_examples=64, eval_examples=9), lambda times: 8 * times),
        (Pointer(size=5, train_examples=64, eval_examples=9), lambda times: 10 * times - 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_tests_at_multiples_of_the_length(task, length) -> None:
    assert task.tests() == ("test@2x", "test@4x", "test@8x")
    model = task.model("retention(heads=2)", 0)
    for times, split in ((1, "test"), (2, "test@2x"), (8, "test@8x")):
        batch = next(task.batches(split, 9))
        assert batch.x.shape[:2] == (9, length(times)) == batch.y.shape
        assert task.forward(model, batch).shape[:2] == batch.y.shape
