"""The training loop: what a step is, what it costs, and on how many processes it runs."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from matmix.experiments import trainer
from matmix.experiments.memory import step_memory
from matmix.experiments.run import RunConfig, execute, read_metrics
from matmix.experiments.task import Batch, Recipe
from matmix.training import having
from sequence.tasks.digits import Digits
from tests.fixtures import load_fixture

SMALL = {"patch": 4, "dim": 8, "depth": 1}
QUICK = {"steps": 12, "batch_size": 32, "log_every": 4, "eval_every": 6}


def weights(folder, name="final"):
    from safetensors.torch import load_file

    return load_file(folder / f"{name}.safetensors")


def test_learning_rate_rises_and_falls():
    recipe = Recipe(steps=100, lr=2.0, lr_end=0.1, warmup=0.1)
    rates = [recipe.lr_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0 and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(1.1) and rates[-1] == pytest.approx(0.2, rel=0.02)
    assert Recipe(steps=3, lr=1.0, warmup=0.0).lr_at(0) == 1.0
    straight = Recipe(steps=100, lr=2.0, warmup=0.0, schedule="power", power=1.0)
    assert [straight.lr_at(step) for step in (0, 25, 50)] == pytest.approx([2.0, 1.5, 1.0])
    assert Recipe(steps=100, lr=1.0, warmup=0.0, schedule="power", power=0.9).lr_at(50) == pytest.approx(0.5**0.9)
    with pytest.raises(ValueError, match=r"Recipe\.power .* got -1"):
        Recipe(power=-1)


def test_the_loop_is_the_bare_loop(tmp_path):
    """The same weights, bit for bit, as from the loop one would write by hand."""
    config = RunConfig("digits", "attention(head_dim=4)", 2, SMALL, QUICK)
    assert execute(config, tmp_path).status == "finished"
    task, recipe = config.make_task(), config.make_recipe()
    model = task.model(config.mixer, 2)
    optimizer = trainer.new_optimizer(model, recipe)
    for step, batch in zip(range(12), task.batches("train", 32, seed=2), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        nn.functional.cross_entropy(model(batch.x), batch.y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
    for name, value in weights(tmp_path).items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_accumulation_adds_up_to_the_whole_batch(tmp_path):
    options = {"betas": (0.9, 0.999)}
    for parts in (1, 4):
        config = RunConfig("digits", "attention(head_dim=4)", 0, SMALL, {**QUICK, **options, "accumulate": parts})
        assert execute(config, tmp_path / str(parts)).status == "finished"
    one, four = weights(tmp_path / "1"), weights(tmp_path / "4")
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-3, atol=1e-5)
    lines = [
        [line["loss"] for line in read_metrics(tmp_path / parts) if line["split"] == "train"] for parts in ("1", "4")
    ]
    assert lines[0] == pytest.approx(lines[1], rel=1e-4)


def test_the_logged_loss_is_the_mean_since_the_last_line(tmp_path, monkeypatch):
    losses = []
    real = trainer.accumulate

    def listen(*arguments):
        losses.append((loss := real(*arguments)).total)
        return loss

    monkeypatch.setattr(trainer, "accumulate", listen)
    execute(RunConfig("digits", "identity", 0, SMALL, {**QUICK, "steps": 10}), tmp_path)
    logged = [line["loss"] for line in read_metrics(tmp_path) if line["split"] == "train"]
    values = torch.stack(losses)
    assert logged == pytest.approx([part.mean().item() for part in values.split(4)], rel=1e-6)


def test_mixed_precision_runs_the_model_in_bfloat16(tmp_path, monkeypatch):
    seen = set()
    real = nn.Linear.forward

    def listen(self, x):
        out = real(self, x)
        seen.add(out.dtype)
        return out

    monkeypatch.setattr(nn.Linear, "forward", listen)
    config = RunConfig("digits", "attention(head_dim=4)", 0, SMALL, {**QUICK, "precision": "bf16"})
    result = execute(config, tmp_path)
    assert result.status == "finished" and torch.bfloat16 in seen
    assert all(value.dtype == torch.float32 for value in weights(tmp_path).values())
    seen.clear()
    plain = execute(dataclasses.replace(config, recipe={**config.recipe, "precision": "no"}), tmp_path / "plain")
    assert plain.status == "finished" and seen == {torch.float32}


@dataclasses.dataclass(frozen=True)
class Worsens(Digits):
    """Digits whose validation score is best at its second evaluation."""

    def metrics(self):
        from torchmetrics import MeanMetric

        scores = iter([0.1, 0.9, 0.5, 0.7])

        class Scripted(MeanMetric):
            def compute(self):
                return torch.tensor(next(scores))

        return {"accuracy": Scripted()}

    def prediction(self, output, batch):
        return torch.zeros(1), torch.ones(1)


def test_the_best_weights_are_kept(tmp_path):
    config = RunConfig(f"{__name__}:Worsens", "identity", 0, SMALL, {**QUICK, "steps": 9, "eval_every": 3})
    result = execute(config, tmp_path)
    assert result.best_step == 6 and result.val["accuracy"] == pytest.approx(0.9)
    until = RunConfig("digits", "identity", 0, SMALL, {**QUICK, "steps": 9, "eval_every": 6})
    model, steps = until.make_task().model("identity", 0), iter(until.make_task().batches("train", 32, seed=0))
    optimizer = trainer.new_optimizer(model, until.make_recipe())
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = until.make_recipe().lr_at(step)
        batch = next(steps)
        nn.functional.cross_entropy(model(batch.x), batch.y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for name, value in weights(tmp_path, "best").items():
        assert torch.equal(value, model.state_dict()[name])


def test_patience_ends_a_run_that_gets_no_better(tmp_path, monkeypatch):
    """Without a learning rate the first evaluation stays the best. Stopped at any step, the run ends the same."""
    recipe = {**QUICK, "steps": 40, "lr": 0.0, "eval_every": 3, "patience": 2, "checkpoint_every": 2}
    config = RunConfig("digits", "identity", 0, SMALL, recipe)
    whole = execute(config, tmp_path / "whole")
    assert (whole.status, whole.step, whole.best_step) == ("finished", 9, 3)
    assert whole.notes == ("stopped after 9 of 40 steps: 2 evaluations in a row were no better than that of step 3",)
    assert [(line["step"], line["split"]) for line in read_metrics(tmp_path / "whole")] == [
        (3, "val"), (4, "train"), (6, "val"), (8, "train"), (9, "val"), (9, "train"), (9, "test"),
    ]  # fmt: skip
    for stops in (7, 9, "test"):
        calls = []

        def stop(*arguments, real=trainer.accumulate, calls=calls, at=stops):
            calls.append(1)
            if len(calls) == at:
                raise OSError("stopped")
            return real(*arguments)

        def no_test(self, model, split, *seed, real=trainer.Scorer.__call__):
            if split == "test":
                raise OSError("stopped")
            return real(self, model, split, *seed)

        folder = tmp_path / str(stops)
        with monkeypatch.context() as patch:
            if stops == "test":
                patch.setattr(trainer.Scorer, "__call__", no_test)
            else:
                patch.setattr(trainer, "accumulate", stop)
            assert execute(config, folder).status == "failed"
        assert execute(config, folder).notes == whole.notes
        for name in ("metrics.jsonl", "final.safetensors", "best.safetensors"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_takes_the_place_of_the_best(tmp_path, monkeypatch):
    """As published, ties and NaN do; else they do not, and NaN ends the run. Or one that is good enough ends it."""

    def ended(losses, **recipe):
        given = iter(losses)

        def score(self, model, split, *seed):
            self.seconds = 0.0
            loss = 0.0 if split == "test" else next(given)
            return {"loss": math.nan if loss is None else loss, "accuracy": math.nan if loss is None else -loss}

        monkeypatch.setattr(trainer.Scorer, "__call__", score)
        given_recipe = {**QUICK, "steps": len(losses), "eval_every": 1, "patience": 3, **recipe}
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        result = execute(RunConfig("digits", "identity", 0, SMALL, given_recipe), folder)
        return result.status, result.step, result.best_step, *result.notes

    for case in load_fixture("time_series/protocol_metrics").data["early_stopping"]:
        assert case["patience"] == 3
        expected = ("finished", case["stops_after_epoch"], case["checkpoint_of_epoch"])
        assert ended(case["val"], kept="not_worse")[:3] == expected
    assert ended([5, 4, 4, 4.1, 4.2, 4.3, 1])[:3] == ("finished", 5, 2)
    assert ended([5, None, 4])[:2] == ("diverged", 2)
    assert ended([5, -0.25, -0.5, -0.6], stop_at=0.5) == (
        "finished", 3, 3, "stopped after 3 of 4 steps: accuracy 0.5 on validation reached 0.5"
    )  # fmt: skip


def test_lower_can_be_better(tmp_path):
    config = RunConfig("co2", "identity", 0, {"length": 16, "horizon": 4, "dim": 8}, {**QUICK, "steps": 24})
    result = execute(config, tmp_path)
    maes = {line["step"]: line["mae"] for line in read_metrics(tmp_path) if line["split"] == "val"}
    assert len(maes) == 4 and result.best_step == min(maes, key=maes.get) and not result.higher_is_better


def test_a_task_whose_metric_is_missing_fails_clearly(tmp_path):
    config = RunConfig(f"{__name__}:NoMetric", "identity", 0, SMALL, QUICK)
    assert "metrics() has ['accuracy']" in execute(config, tmp_path).error


class NoMetric(Digits):
    metric = "recall"


def test_progress_tells_what_a_bar_needs(tmp_path):
    news = []
    execute(RunConfig("digits", "identity", 0, SMALL, QUICK), tmp_path, progress=news.append)
    assert [item["step"] for item in news] == [4, 8, 12] and all(item["steps"] == 12 for item in news)
    assert all(item["samples_per_second"] > 0 and item["seconds_left"] >= 0 and item["loss"] > 0 for item in news)
    assert "val accuracy" not in news[0] and 0 <= news[1]["val accuracy"] <= 1


def test_peak_memory_sees_what_a_step_holds():
    """A known allocation of 4 MB inside the loss raises it by 4 MB, whatever ran before."""

    @dataclasses.dataclass(frozen=True)
    class Wasteful(Digits):
        waste: int = 0

        def loss(self, output, batch: Batch):
            held = torch.ones(self.waste)
            return super().loss(output, batch) + 0 * held.sum()

    def measure(waste: int) -> int:
        task = Wasteful(**SMALL, waste=waste)
        model = task.model("identity", 0)
        recipe = Recipe(**QUICK)
        return step_memory(task, trainer.new_accelerator("no"), model, trainer.new_optimizer(model, recipe), recipe)

    plain = measure(0)
    assert measure(10**6) - plain == pytest.approx(4e6, rel=0.02)
    assert measure(0) == plain


def step_bytes(mixer: str, device: str, recipe: Recipe) -> tuple[int, int]:
    """Peak memory of a step after one update, and the bytes of the weights."""
    task = Digits(dim=32, depth=2)
    accelerator = trainer.new_accelerator("no")
    accelerator.state.device = torch.device(device)
    model = task.model(mixer, 0).to(device)
    optimizer = trainer.new_optimizer(model, recipe)
    trainer.accumulate(accelerator, task, model, next(task.batches("train", recipe.batch_size)), 1, nn.ModuleList())
    optimizer.step()
    found = step_memory(task, accelerator, model, optimizer, recipe)
    assert all(parameter.grad is None for parameter in model.parameters())
    return found, sum(parameter.nbytes for parameter in model.parameters())


def test_peak_memory_is_weights_moments_gradients_and_activations():
    whole, weights_ = step_bytes("attention", "cpu", Recipe(batch_size=32))
    parts, _ = step_bytes("attention", "cpu", Recipe(batch_size=32, accumulate=8))
    least = 4 * weights_  # the weights, two moments, the gradients
    assert least < parts < whole and (whole - least) / (parts - least) == pytest.approx(8, rel=0.5)


def test_peak_memory_has_auxiliary_losses_in_it(monkeypatch):
    mixer, recipe = "vq_attention(codes=8)", Recipe(batch_size=32)
    plain, _ = step_bytes(mixer, "cpu", recipe)
    cls = type(having(Digits().model(mixer, 0), "auxiliary_loss")[0])
    real = cls.auxiliary_loss
    monkeypatch.setattr(cls, "auxiliary_loss", lambda self, *noted: real(self, *noted) + 0 * torch.ones(10**6).sum())
    assert step_bytes(mixer, "cpu", recipe)[0] - plain == pytest.approx(4e6, rel=0.3)


@pytest.mark.gpu
def test_peak_memory_means_the_same_on_a_gpu():
    recipe = Recipe(batch_size=64)
    cpu, gpu = (step_bytes("sep_conv", device, recipe)[0] for device in ("cpu", "cuda"))
    assert gpu == pytest.approx(cpu, rel=0.25)
