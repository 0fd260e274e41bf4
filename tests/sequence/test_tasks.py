"""Every task that needs no files, and the three of the quickstart: their data is what they say it is."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from matmix.experiments.registry import list_tasks, task_class
from sequence.data.labels import IGNORED
from sequence.data.mqar import fixed, fresh, plain
from sequence.tasks.co2 import CO2, weeks, windows
from sequence.tasks.digits import Digits, splits
from sequence.tasks.recall import Recall
from tests.sequence.small import SMALL

TASKS = {**{name: task_class(name)() for name in ("digits", "co2", "recall")}, **SMALL}


# ------------------------------------------------------------------ every task


@pytest.mark.parametrize("name", TASKS)
class TestEveryTask:
    def test_is_found(self, name):
        cls = task_class(name)
        assert cls is type(TASKS[name]) and name in list_tasks()
        assert cls().recipe().steps > 0 and TASKS[name].recipe().batch_size > 0

    def test_batches_follow_from_seed_and_step(self, name):
        task = TASKS[name]
        first = list(itertools.islice(task.batches("train", 16, seed=5), 80))
        again = list(itertools.islice(task.batches("train", 16, seed=5, start=70), 10))
        for a, b in zip(first[70:], again, strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.y.nan_to_num(), b.y.nan_to_num())
        other = next(task.batches("train", 16, seed=6))
        assert not torch.equal(first[0].x, other.x) and not torch.equal(first[0].x, first[1].x)

    def test_ranks_share_a_batch(self, name):
        task = TASKS[name]
        whole = next(task.batches("train", 16, seed=1, start=3))
        parts = [next(task.batches("train", 16, seed=1, start=3, rank=rank, world=2)) for rank in (0, 1)]
        assert torch.equal(torch.stack([part.x for part in parts], 1).flatten(0, 1), whole.x)

    def test_evaluation_goes_through_everything_once(self, name):
        task = TASKS[name]
        for split in ("val", "test"):
            one = torch.cat([batch.x for batch in task.batches(split, 7)])
            whole = torch.cat([batch.x for batch in task.batches(split, 100000)])
            assert torch.equal(one, whole)
            shares = [batch.x for rank in range(3) for batch in task.batches(split, 7, rank=rank, world=3)]
            assert sum(map(len, shares)) == len(whole)

    def test_a_model_trains_on_it(self, name):
        task = TASKS[name]
        model = task.model("identity", 0)
        batch = next(task.batches("train", 8))
        output = task.forward(model, batch)
        task.loss(output, batch).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        metrics = task.metrics()
        assert task.metric in metrics
        for metric in metrics.values():
            metric.update(*task.prediction(output.detach(), batch))
            assert metric.compute().isfinite()
        assert model(*task.example()).shape[0] == 1

    def test_facts_and_baselines_are_json(self, name):
        task = TASKS[name]
        assert json.loads(json.dumps(task.facts())) == task.facts() and task.facts()
        for scores in task.baselines().values():
            assert task.metric in scores and all(np.isfinite(list(scores.values())))


@pytest.mark.parametrize("name", SMALL)
def test_the_loss_falls(name):
    task = SMALL[name]
    model = task.model("attention(head_dim=4, causal=True)", 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for batch in itertools.islice(task.batches("train", 32), 40):
        loss = task.loss(task.forward(model, batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:2])


# ------------------------------------------------------------------ digits


def test_digits_splits_are_disjoint_stratified_and_fixed():
    found = splits(0)
    sizes = {name: len(y) for name, (_, y) in found.items()}
    assert sizes == {"train": 1078, "val": 359, "test": 360} and sum(sizes.values()) == 1797
    every = torch.cat([y for _, y in found.values()])
    for _, y in found.values():
        share, whole = torch.bincount(y, minlength=10) / len(y), torch.bincount(every) / len(every)
        assert (share - whole).abs().max() < 0.004
    # The data set holds no two equal images, so equal rows would be a leak.
    images = torch.cat([x for x, _ in found.values()]).flatten(1)
    assert len(images.unique(dim=0)) == 1797
    assert images.min() == -1 and images.max() == 1
    again, other = splits.__wrapped__(0), splits(1)
    assert torch.equal(again["test"][0], found["test"][0]) and not torch.equal(other["test"][0], found["test"][0])


@pytest.mark.parametrize(
    ("layout", "patch", "grid"), [("sequence", 1, (64,)), ("grid", 1, (8, 8)), ("grid", 2, (4, 4))]
)
def test_digits_layouts(layout, patch, grid):
    model = Digits(layout=layout, patch=patch, dim=8, depth=1).model("pooling", 0)
    assert model.blocks[0].mixer.grid == grid
    assert model(splits(0)["val"][0][:3]).shape == (3, 10)


def test_digit_tokens_are_pixels_row_by_row():
    model = Digits(dim=4).model("identity", 0)
    x = splits(0)["val"][0][:2]
    expected = x.flatten(1).unsqueeze(-1) * model.embedding.project.weight.flatten() + model.embedding.project.bias
    torch.testing.assert_close(model.embedding(x), expected)


# ------------------------------------------------------------------ recall


def both(fill: bool):
    yield fixed(plain, 300, 40, 32, 5, 0.01, fill=fill, seed=1)
    yield fresh(plain, np.random.default_rng(0), 300, 40, 32, 5, 0.01, fill=fill)


@pytest.mark.parametrize("fill", [False, True])
def test_every_query_has_its_value(fill):
    for x, y in both(fill):
        assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (300, 32)
        assert ((y != IGNORED).sum(1) == 5).all() and (y[:, :10] == IGNORED).all() and (y[:, 1::2] == IGNORED).all()
        for tokens, labels in zip(x.tolist(), y.tolist(), strict=True):
            value = dict(zip(tokens[0:10:2], tokens[1:10:2], strict=True))
            assert len(value) == 5 == len(set(value.values()))
            assert all(1 <= key < 20 for key in value) and all(20 <= one < 40 for one in value.values())
            asked = {token: label for token, label in zip(tokens, labels, strict=True) if label != IGNORED}
            assert asked == value
            if not fill:
                assert all(token in (0, *value) for token in tokens[10:])
        if fill:
            assert (x[:, 10:] == 0).float().mean() < 0.1


def test_the_fast_generator_draws_the_published_distribution():
    """Frequencies of each key, value and (first query, slot) of both generators, within five standard errors."""
    count = 20000
    one = fixed(plain, count, 16, 12, 2, 0.3, fill=False, seed=0)
    two = fresh(plain, np.random.default_rng(0), count, 16, 12, 2, 0.3, fill=False)
    for position in range(12):
        a, b = (torch.bincount(x[:, position], minlength=16) / count for x, _ in (one, two))
        assert ((a - b).abs() <= 5 * (2 * a.clamp(min=1 / count) / count).sqrt()).all(), position
    slots = [(x[:, 4:] == x[:, :1]).int().argmax(1) for x, _ in (one, two)]
    a, b = (torch.bincount(slot, minlength=8) / count for slot in slots)
    assert ((a - b).abs() <= 5 * (2 * a.clamp(min=1 / count) / count).sqrt()).all()


def test_fillers_follow_from_the_seed():
    torch.manual_seed(1)
    one = fixed.__wrapped__(plain, 4, 40, 32, 5, 0.01, fill=True, seed=9)[0]
    torch.manual_seed(2)
    assert torch.equal(one, fixed.__wrapped__(plain, 4, 40, 32, 5, 0.01, fill=True, seed=9)[0])
    assert not torch.equal(one, fixed(plain, 4, 40, 32, 5, 0.01, fill=True, seed=10)[0])


def test_recall_sets_differ_and_can_be_fixed():
    task = Recall(train_examples=100, eval_examples=50)
    sets = {split: next(task.batches(split, 50)).x for split in ("val", "test")}
    assert len(torch.cat(list(sets.values())).unique(dim=0)) == 100
    seen = torch.cat([batch.x for batch in itertools.islice(task.batches("train", 20, seed=0), 15)])
    assert len(seen.unique(dim=0)) == 100
    fresh = torch.cat([batch.x for batch in itertools.islice(Recall().batches("train", 20, seed=0), 15)])
    assert len(fresh.unique(dim=0)) == 300


def test_recall_baselines_are_what_such_predictors_score():
    task = Recall(pairs=4)
    x, y = task.data("test")
    scores = task.baselines()
    assert scores["a value of the context"]["accuracy"] == 1 / 4
    labels = y != IGNORED
    rows = torch.arange(len(x))[:, None].expand_as(y)[labels]
    pick = torch.randint(4, rows.shape, generator=torch.Generator().manual_seed(0))
    score = (x[rows, 1 + 2 * pick] == y[labels]).double().mean().item()
    assert score == pytest.approx(1 / 4, abs=0.03)
    assert 0.3 < scores["best guess by position"]["accuracy"] < 0.45
    even = Recall(pairs=4, power=1.0).baselines()["best guess by position"]["accuracy"]
    assert even == pytest.approx(1 / 4, abs=0.03)
    assert Recall(pairs=1).baselines()["best guess by position"]["accuracy"] == 1


# ------------------------------------------------------------------ co2


def test_co2_counts_its_gaps():
    facts = CO2().facts()
    assert facts["weeks"] == 2284 and facts["missing weeks"] == 59 == sum(facts["missing weeks by split"].values())
    values, measured, scale = weeks(0.7)
    assert np.isnan(values).sum() == 59 and (~measured).sum() == 59
    assert scale == pytest.approx(np.nanstd(values[: int(0.7 * 2284)]))


def test_co2_windows_are_the_series():
    task = CO2(length=60, horizon=8)
    values, _, scale = weeks(0.7)
    found = windows(60, 8, 0.7, 0.1)
    ends = {"train": (60, 1598), "val": (1598, 1827), "test": (1827, 2284)}
    for split, (first, end) in ends.items():
        x, y = found[split]
        assert len(x) == len(y) == end - first - 8 + 1
        for index in (0, len(x) // 2, len(x) - 1):
            week = first + index  # the first to forecast
            truth = values[week : week + 8]
            known = ~np.isnan(truth)
            assert np.array_equal(~np.isnan(y[index].numpy()), known)
            level = truth[known] - y[index].numpy()[known] * scale
            past = values[week - 60 : week]
            seen = ~np.isnan(past)
            assert np.array_equal(x[index, :, 1].numpy() == 1, seen)
            assert x[index, -1, 0] == 0
            # inputs are changes since the last week, targets too: the level that both imply is one number
            implied = np.concatenate([level, past[seen] - x[index, seen, 0].numpy() * scale])
            assert np.ptp(implied) < 1e-3
    assert task.facts()["windows"] == {split: len(x) for split, (x, _) in found.items()}


def test_co2_gaps_are_lines_between_neighbours_and_never_scored():
    _, measured, scale = weeks(0.7)
    gap = next(i for i in range(200, 1500) if not measured[i] and measured[i - 1] and measured[i + 1])
    x, _ = windows(60, 8, 0.7, 0.1)["train"]
    index = gap + 1 - 60 + 5  # a window that ends six weeks after the gap
    row = x[index]
    at = gap - (60 + index - 60)
    assert row[at, 1] == 0
    assert row[at, 0] == pytest.approx((row[at - 1, 0] + row[at + 1, 0]).item() / 2, abs=1e-5)

    task = CO2(length=60, horizon=8)
    batch = next(iter(task.batches("train", 256)))
    assert batch.y.isnan().any()
    output = torch.zeros_like(batch.y, requires_grad=True)
    loss = task.loss(output, batch)
    loss.backward()
    assert loss.isfinite() and (output.grad[batch.y.isnan()] == 0).all() and (output.grad != 0).any()
    _, target = task.prediction(output.detach(), batch)
    assert len(target) == (~batch.y.isnan()).sum() and target.isfinite().all()
    assert target.abs().max() == pytest.approx((batch.y.nan_to_num().abs().max() * scale).item(), rel=1e-5)


def test_co2_knows_nothing_of_later_splits(monkeypatch):
    """Whatever the test years hold, training and validation windows stay as they are."""
    from sequence.tasks import co2

    before = {split: pair for split, pair in windows(60, 8, 0.7, 0.1).items() if split != "test"}
    real = weeks(0.7)
    changed = real.values.copy()
    changed[1827:] = 1000.0
    scale = float(np.nanstd(changed[:1598]))
    monkeypatch.setattr(co2, "weeks", lambda share: co2.Weeks(changed, ~np.isnan(changed), scale))
    after = windows.__wrapped__(60, 8, 0.7, 0.1)
    for split, (x, y) in before.items():
        assert torch.equal(x, after[split][0]) and torch.equal(y.nan_to_num(), after[split][1].nan_to_num())


def test_co2_baselines():
    scores = CO2().baselines()
    season = scores["same week a year ago, plus the year's growth"]
    assert season["mae"] < scores["same week a year ago"]["mae"] < 3
    assert season["mae"] < scores["last value"]["mae"]
    assert "same week a year ago" not in CO2(length=26).baselines()
    with pytest.raises(ValueError, match="leave no window in the val split"):
        CO2(horizon=400).facts()
