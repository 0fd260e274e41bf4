"""What a recipe says: the rate of every step, and which parameters have which rate and decay."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from matmix import create_mixer, optim_settings
from matmix.experiments.optimizer import new_optimizer, set_step
from matmix.experiments.recipe import Recipe
from matmix.experiments.run import RunConfig, execute
from tests.fixtures import load_fixture


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), create_mixer("s4d(d_state=2)", dim=8))


def held(recipe: Recipe, module: nn.Module | None = None) -> dict[str, tuple[float, float]]:
    """Rate at its highest and decay of every parameter, by name."""
    module = module or model()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    optimizer = new_optimizer(module, recipe)
    set_step(optimizer, recipe, recipe.rise)
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_one_cycle_is_torchs():
    """The rates, and the betas that go with them, of the optimiser after each of 20 steps."""
    theirs = torch.optim.AdamW(nn.Linear(2, 2).parameters(), betas=(0.9, 0.99))
    schedule = OneCycleLR(
        theirs, 0.3, 20, pct_start=0.25, anneal_strategy="linear", div_factor=25, final_div_factor=1e4
    )
    recipe = Recipe(steps=20, lr=0.3, lr_end=0.04 / 1e4, warmup=0.25, warmup_start=0.04, schedule="onecycle")
    ours = new_optimizer(nn.Linear(2, 2), recipe)
    for step in range(20):
        set_step(ours, recipe, step)
        (group, *_), (expected,) = ours.param_groups, theirs.param_groups
        assert (group["lr"], *group["betas"]) == pytest.approx((expected["lr"], *expected["betas"]), rel=1e-6)
        theirs.step()
        if step < 19:
            schedule.step()


def test_published_schedules():
    """Long Range Arena's 0.05 / sqrt(max(step, 8000)) in 5,000 steps, which end within the warm-up; Mega's straight
    lines; a cosine that is longer than the training, or shorter; a rate that stays."""
    arena = Recipe(steps=5000, lr=0.05 / math.sqrt(8000), warmup=1.0, schedule="rsqrt", schedule_steps=8000)
    assert arena.lr_at(4999) == pytest.approx(0.05 * 5000 / 8000 / math.sqrt(8000))
    whole = Recipe(steps=20_000, lr=0.05 / math.sqrt(8000), warmup=0.4, schedule="rsqrt")
    assert [whole.lr_at(step - 1) for step in (4000, 8000, 16_000)] == pytest.approx(
        [0.05 / 2 / math.sqrt(8000), 0.05 / math.sqrt(8000), 0.05 / math.sqrt(16_000)]
    )
    mega = Recipe(steps=1000, lr=0.01, warmup=0.1, warmup_start=1e-5, schedule="power", power=1.0)
    assert [mega.lr_at(step) for step in (49, 99, 100, 550)] == pytest.approx([0.0050005, 0.01, 0.01, 0.005], rel=1e-4)
    longer, shorter = (Recipe(steps=100, lr=1.0, warmup=0.1, schedule_steps=span) for span in (200, 80))
    assert longer.lr_at(110) == pytest.approx(0.5) and longer.lr_at(19) == 1.0
    assert shorter.lr_at(44) == pytest.approx(0.5) and shorter.lr_at(80) == shorter.lr_at(99) == 0
    constant = Recipe(steps=100, lr=0.3, warmup=0.2, schedule="constant")
    assert constant.lr_at(9) == pytest.approx(0.15) and constant.lr_at(20) == constant.lr_at(99) == 0.3


def test_halving_is_the_published_one():
    """Of the Time Series Library: an epoch's rate stays for two, then it is halved every epoch."""
    published = load_fixture("time_series/protocol_metrics").data["lr"]["type1"]
    recipe = Recipe(steps=11 * 7, lr=1e-3, warmup=0.0, schedule="halving", halve_every=7)
    assert [recipe.lr_at(7 * epoch) for epoch in range(11)] == pytest.approx(published)
    assert [recipe.lr_at(7 * epoch + 6) for epoch in range(11)] == pytest.approx(published)
    for wrong in ({"schedule": "halving"}, {"halve_every": 7}):
        with pytest.raises(ValueError, match=r"Recipe\.halve_every must be at least 1 with schedule='halving'"):
            Recipe(**wrong)


def test_what_is_decayed():
    plain, free = (0.1, 0.05), (0.1, 0.0)
    matrices = held(Recipe(lr=0.1))
    assert matrices["0.weight"] == plain and matrices["0.bias"] == matrices["1.weight"] == free
    assert matrices["2.kernel.log_dt"] == matrices["2.kernel.A_imag"] == free
    unmarked = held(Recipe(lr=0.1, decayed="unmarked"))
    assert {name.rpartition(".")[2] for name, found in unmarked.items() if found == free} == {
        "log_dt", "log_A_real", "A_imag",
    }  # fmt: skip
    assert set(held(Recipe(lr=0.1, decayed="all")).values()) == {plain}


def test_groups_by_name():
    groups = ("log_dt *A_* lr=0.001 weight_decay=0", "2.* weight_decay=0.2", "*.log_dt lr=9")
    found = held(Recipe(lr=0.1, groups=groups))
    assert found["2.kernel.log_dt"] == found["2.kernel.log_A_real"] == (0.001, 0.0)
    assert found["2.D"] == found["2.output_linear.weight"] == (0.1, 0.2)
    assert found["0.weight"] == (0.1, 0.05) and found["0.bias"] == (0.1, 0.0)
    module = model()
    nn.utils.parametrizations.weight_norm(module[0])
    assert held(Recipe(lr=0.1, groups=("0.weight lr=0.5",)), module)["0.parametrizations.weight.original1"][0] == 0.5


def test_settings_of_a_model_s_own():
    """A module's, S4's mark on the parameter, and the recipe's, the last before the others."""

    class Scan(nn.Module):
        optim_settings: ClassVar[dict] = {
            "dt": {"lr": 0.001, "weight_decay": 0.0},
            "A": {"lr": 0.002},
            "absent": {"lr": 1.0},
        }

        def __init__(self):
            super().__init__()
            for name in ("dt", "A", "B", "C"):
                setattr(self, name, nn.Parameter(torch.ones(2, 2)))
            self.B._optim = {"lr": 0.003, "weight_decay": None}

    module = nn.Sequential(Scan(), nn.Linear(2, 2))
    assert set(optim_settings(module)) == {"0.dt", "0.A", "0.B"}
    found = held(Recipe(lr=0.1, groups=("A lr=0.5",)), module)
    assert found["0.dt"] == (0.001, 0.0) and found["0.A"] == (0.5, 0.05) and found["0.B"] == (0.003, 0.05)
    assert found["0.C"] == found["1.weight"] == (0.1, 0.05)
    Scan.optim_settings = {"dt": {"rate": 0.1}}
    with pytest.raises(ValueError, match=r"Scan\.optim_settings\['dt'\] may set lr and weight_decay.* got rate=0.1"):
        optim_settings(module)


@pytest.mark.parametrize("schedule", ["cosine", "power", "constant", "rsqrt", "onecycle"])
def test_a_group_keeps_its_ratio(schedule):
    settings = {"cosine": {"lr_end": 0.1}, "power": {"power": 2.0}, "onecycle": {"warmup_start": 0.04}}
    recipe = Recipe(
        steps=50, lr=0.2, warmup=0.2, schedule=schedule, groups=("0.* lr=0.02",), **settings.get(schedule, {})
    )
    optimizer = new_optimizer(model(), recipe)
    for step in range(50):
        set_step(optimizer, recipe, step)
        *shared, own = (group["lr"] for group in optimizer.param_groups)
        assert shared[0] == shared[1] == recipe.lr_at(step) and own == pytest.approx(shared[0] / 10)


def test_the_result_says_which_parameters_had_which_rate(tmp_path):
    groups = ("head.* lr=0.5 weight_decay=0.3", "log_dt lr=1")
    config = RunConfig(
        "digits", "identity", 0, {"patch": 4, "dim": 8, "depth": 1}, {"steps": 1, "batch_size": 8, "groups": groups}
    )
    assert "--recipe.groups 'head.* lr=0.5 weight_decay=0.3' 'log_dt lr=1'" in config.command("out")
    result = execute(config, tmp_path)
    assert result.groups[-1] == {"tensors": 2, "parameters": 90, "lr": 0.5, "weight_decay": 0.3}
    assert sum(group["parameters"] for group in result.groups) == result.parameters
    assert result.notes == ("no parameter is named by 'log_dt lr=1'",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, r"steps must be a whole number in \[1, 1e\+09\], got 0"),
        ({"steps": True}, r"steps must be a whole number in \[1, 1e\+09\], got True"),
        ({"lr": math.nan}, r"lr must be a finite number in \[0, 1e\+30\], got nan"),
        ({"warmup": 1.5}, r"warmup must be a finite number in \[0, 1\], got 1.5"),
        ({"ema": 1.0}, r"ema must be a finite number in \[0, 1\), got 1.0"),
        ({"betas": (0.9, 1.0)}, r"betas must be a pair, each a finite number in \[0, 1\), got \(0.9, 1.0\)"),
        ({"precision": "fp8"}, "precision must be one of 'no', 'bf16', 'fp16', got 'fp8'"),
        ({"batch_size": 6, "accumulate": 4}, "batch_size=6 must divide by accumulate=4"),
        ({"power": 1.0}, "power must be above 0 with schedule='power', and 0 with any other, got power=1.0 with"),
        ({"schedule": "power"}, "power must be above 0 with schedule='power'"),
        ({"schedule": "constant", "lr_end": 0.1}, "lr_end must be 0 with schedule='constant', got 0.1"),
        ({"schedule": "rsqrt", "warmup": 0.0}, "warmup must be at least 2 steps with schedule='rsqrt'"),
        ({"warmup": 0.0, "warmup_start": 0.1}, "warmup_start=0.1 needs a warm-up, got warmup=0.0"),
        ({"groups": ("dt",)}, "each of Recipe.groups must be names of parameters.* got 'dt'"),
        ({"groups": ("dt rate=1",)}, "each of Recipe.groups must be"),
        ({"groups": ("lr=1",)}, "each of Recipe.groups must be"),
        ({"groups": ("dt lr=-1",)}, "each of Recipe.groups must be"),
    ],
)
def test_what_is_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=f"Recipe.{message}" if message[:4] != "each" else message):
        Recipe(**settings)


def test_what_an_optimiser_lacks_is_said():
    pytest.importorskip("timm")
    recipe = Recipe(optimizer="sgd", schedule="onecycle", warmup=0.1)
    with pytest.raises(ValueError, match="schedule='onecycle' moves what 'sgd' does not have"):
        new_optimizer(model(), recipe)
    with pytest.raises(ValueError, match=r"Recipe\.eps=1e-06 moves what 'lion' does not have"):
        new_optimizer(model(), Recipe(optimizer="lion", eps=1e-6))
    assert new_optimizer(model(), Recipe(optimizer="lamb", eps=1e-3)).param_groups[0]["eps"] == 1e-3
