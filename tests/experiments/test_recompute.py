"""Blocks that are computed again in the backward pass: the same gradients and the same state for less memory."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from matmix.experiments import trainer
from matmix.experiments.memory import step_memory
from matmix.experiments.recipe import Recipe
from matmix.experiments.recompute import recompute_blocks
from matmix.experiments.run import RunConfig, execute
from matmix.experiments.step import accumulate, new_accelerator
from matmix.training import after_step, having
from sequence.tasks.digits import Digits
from tests.experiments.steps import VQ

SMALL = {"patch": 2, "dim": 8, "depth": 2}
TASKS = {
    "dropout": Digits(**SMALL, dropout=0.3),
    "batch norm": Digits(**SMALL, norm="batch"),
    "codebook": Digits(**SMALL),
}


def one_step(task: Digits, mixer: str, parts: int, again: bool) -> dict[str, torch.Tensor]:
    """Gradients and buffers after a step from one seed."""
    model = task.model(mixer, 0).train()
    if again:
        recompute_blocks(model)
    torch.manual_seed(1)
    losses = nn.ModuleList(having(model, "auxiliary_loss"))
    loss = accumulate(new_accelerator("no"), task, model, next(task.batches("train", 16)), parts, losses)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    after_step(model)
    return {"loss": loss.total, **gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", TASKS)
def test_the_same_step(name, parts):
    mixer = VQ if name == "codebook" else "attention(head_dim=4)"
    plain, again = (one_step(TASKS[name], mixer, parts, way) for way in (False, True))
    assert plain.keys() == again.keys()
    for key, value in plain.items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=1e-7, msg=key)


def test_less_memory():
    task, recipe = Digits(patch=1, dim=16, depth=6), Recipe(batch_size=32)
    found = []
    for again in (False, True):
        model = task.model("attention(head_dim=4)", 0)
        if again:
            recompute_blocks(model)
        found.append(step_memory(task, new_accelerator("no"), model, trainer.new_optimizer(model, recipe), recipe))
    assert found[1] < 0.5 * found[0]


def test_a_copy_runs_its_own_blocks():
    model = TASKS["dropout"].model("identity", 0).eval()
    recompute_blocks(model)
    other, x = copy.deepcopy(model), next(TASKS["dropout"].batches("val", 2)).x
    with torch.no_grad():
        before = model(x)
        for parameter in other.blocks.parameters():
            parameter.zero_()
        assert torch.equal(model(x), before) and not torch.equal(other(x), before)


def test_a_run_recomputes(tmp_path):
    """As a setting of a run, with a running average of the weights: what it trains is what it trains without."""
    recipe = {"steps": 4, "batch_size": 16, "ema": 0.5}
    config = RunConfig("digits", "attention(head_dim=4)", 0, {**SMALL, "dropout": 0.2}, recipe)
    other = dataclasses.replace(config, recipe={**config.recipe, "checkpointing": True})
    one, two = execute(config, tmp_path / "one"), execute(other, tmp_path / "two")
    assert one.status == two.status == "finished" and two.peak_memory_bytes < one.peak_memory_bytes
    assert one.test == pytest.approx(two.test, rel=1e-5)


def test_own_methods_are_used_and_no_block_is_an_error():
    class Own(nn.Module):
        asked = False

        def set_grad_checkpointing(self, enable=True):
            self.asked = enable

    model = nn.Sequential(Own(), nn.Linear(2, 2))
    recompute_blocks(model)
    assert model[0].asked and "forward" not in vars(model[0])
    with pytest.raises(ValueError, match=r"Recipe\.checkpointing=True: Sequential has neither set_grad_checkpointing"):
        recompute_blocks(nn.Sequential(nn.Linear(2, 2)))
