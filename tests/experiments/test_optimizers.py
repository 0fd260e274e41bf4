"""Every optimiser that a recipe may name trains, and goes on from a checkpoint as if nothing had been; others are
refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm.optim
import torch
from torch import nn

from matmix.experiments.checkpoint import load_checkpoint, save_checkpoint
from matmix.experiments.optimizer import new_optimizer
from matmix.experiments.recipe import ELSEWHERE, UNFIT, Recipe


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


QUICK = ("adamw", "radam", "adafactorbv", "lion", "muon", "fusedadam")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in sorted(set(timm.optim.list_optimizers()) - set(UNFIT))
    ],
)
def test_an_optimizer_goes_on_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    recipe = Recipe(optimizer=name, lr=1e-3, weight_decay=0.01)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    if name.startswith(tuple(ELSEWHERE)) and not torch.cuda.is_available():
        with pytest.raises(ValueError, match=f"Recipe.optimizer='{name}' must be able to run here"):
            new_optimizer(model, recipe)
        return
    optimizer = new_optimizer(model, recipe)
    before = model.weight.clone()
    steps(model, optimizer, 0, 2)
    assert not torch.equal(model.weight, before)
    save_checkpoint(tmp_path, 2, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    steps(model, optimizer, 2, 4)
    state, other = load_checkpoint(tmp_path, 2), nn.Linear(3, 2)
    other.load_state_dict(state["model"])
    again = new_optimizer(other, recipe)
    again.load_state_dict(state["optimizer"])
    steps(other, again, 2, 4)
    assert torch.equal(other.weight, model.weight)


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_train_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"Recipe.optimizer must be .* got '{name}', which {UNFIT[name]}"):
        Recipe(optimizer=name)
