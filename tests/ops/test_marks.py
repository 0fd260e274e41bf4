"""Marks of parameters are found whatever the module that holds them is wrapped in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import timm.optim
import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

from matmix import create_mixer, no_weight_decay
from matmix.experiments.optimizer import new_optimizer
from matmix.experiments.task import Recipe

peft = pytest.importorskip("peft")
SPEC, MARKED = "s6(d_state=2)", {"A_log", "D"}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), create_mixer(SPEC, dim=8))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    destroy_process_group()


WRAPPERS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "deepcopy": (copy.deepcopy, ""),
    "compile": (torch.compile, "_orig_mod."),
    "average": (AveragedModel, "module."),
    "parallel": (DistributedDataParallel, "module."),
    "peft": (
        lambda model: peft.get_peft_model(model, peft.LoraConfig(target_modules=["x_proj"], r=2)),
        "base_model.model.",
    ),
}


@pytest.mark.parametrize("how", WRAPPERS)
@pytest.mark.usefixtures("one_process")
def test_wrapped(how: str) -> None:
    wrap, prefix = WRAPPERS[how]
    wrapped = wrap(model())
    names = no_weight_decay(wrapped)
    assert names == {f"{prefix}1.{name}" for name in MARKED}
    assert names <= {name for name, _ in wrapped.named_parameters()}


def test_modules_that_peft_trains_beside_its_adapters() -> None:
    config = peft.LoraConfig(target_modules=["0"], r=2, modules_to_save=["1"])
    names = no_weight_decay(peft.get_peft_model(model(), config))
    assert {name.rpartition(".")[2] for name in names} == MARKED
    assert any(".modules_to_save.default." in name for name in names)


def test_parametrised_and_pruned() -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    parametrised = model()
    parametrize.register_parametrization(parametrised[1], "A_log", Doubled())
    assert no_weight_decay(parametrised) == {"1.parametrizations.A_log.original", "1.D"}
    normed = model()
    parametrizations.weight_norm(normed[1], "A_log")
    assert no_weight_decay(normed) == {f"1.parametrizations.A_log.original{i}" for i in (0, 1)} | {"1.D"}
    pruned = model()
    prune.l1_unstructured(pruned[1], "A_log", 0.5)
    assert no_weight_decay(pruned) == {"1.A_log_orig", "1.D"}


def test_tied_and_frozen_modules() -> None:
    shared = model()
    shared.append(shared[1])
    assert no_weight_decay(shared) == {f"{place}.{name}" for place in (1, 2) for name in MARKED}
    assert no_weight_decay(shared.requires_grad_(False)) == no_weight_decay(shared)


def test_marks_of_others() -> None:
    foreign = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)
    around = nn.Sequential(foreign, nn.Linear(4, 4))
    around[1].weight._no_weight_decay = True  # type: ignore[assignment]  # mamba-ssm's way
    assert no_weight_decay(around) == {"0.pos_embed", "0.cls_token", "1.weight"}
    assert no_weight_decay(nn.Linear(4, 4)) == set()


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_optimisers_spare_what_is_marked(optimizer: str) -> None:
    assigned = model()
    assigned.load_state_dict(copy.deepcopy(assigned).state_dict(), assign=True)
    groups = new_optimizer(assigned, Recipe(optimizer=optimizer, weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in assigned.named_parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 and name not in {"1.A_log", "1.D"} else 0), name


def test_timm_takes_a_mixer() -> None:
    mixer = create_mixer(SPEC, dim=8)
    groups = timm.optim.create_optimizer_v2(mixer, "adamw", lr=1e-3, weight_decay=0.1).param_groups
    assert {group["weight_decay"] for group in groups for p in group["params"] if p is mixer.A_log} == {0}


@pytest.mark.filterwarnings("ignore:FSDP is switching")
@pytest.mark.usefixtures("one_process")
def test_sharded() -> None:
    sharded = FullyShardedDataParallel(model(), use_orig_params=True, device_id=torch.device("cpu"))
    assert {name.rpartition(".")[2] for name in no_weight_decay(sharded)} == MARKED
