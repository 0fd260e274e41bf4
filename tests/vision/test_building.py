"""Building, moving and saving of image models: one of each family with numbers, all names without."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm.optim
import torch
from accelerate import init_empty_weights
from torch import nn

import vision
from matmix import no_weight_decay
from tests.building import check_building, check_dtypes, check_stored
from tests.vision.families import FAMILIES, SIZE, small

QUICK = ("activemlp_xt", "caformer_s18", "vim2_t")
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize("name", NAMES)
def test_a_family(name: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3, SIZE, SIZE)
    check_building(lambda: small(name), x, tmp_path)
    check_dtypes(lambda: small(name), x)
    with torch.device("meta"):
        model = small(name).resize_((SIZE + 32, SIZE))
        assert model(torch.randn(2, 3, SIZE + 32, SIZE)).shape == (2, 5)
    check_stored(model)


@pytest.mark.parametrize("name", NAMES)
def test_timm_spares_what_the_parts_name(name: str) -> None:
    model = small(name)
    spared = {id(p) for n, p in model.named_parameters() if n in no_weight_decay(model)}
    assert spared == {id(p) for n, p in model.named_parameters() if n in model.no_weight_decay()}
    groups = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim > 1} - spared


@pytest.mark.parametrize("name", NAMES)
def test_what_was_changed_in_place_can_be_saved(name: str) -> None:
    model = small(name)
    model.resize_((SIZE + 32, SIZE))
    model.reset_classifier(3)
    for module in model.modules():
        fuse = getattr(module, "fuse_", None)
        if callable(fuse):
            fuse()
    check_stored(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", vision.list_models())
def test_every_name(name: str) -> None:
    with torch.device("meta"):
        model = vision.create_model(name)
    check_stored(model)
    assert all(value.is_meta for value in (*model.parameters(), *model.buffers()))
    with init_empty_weights():
        other = vision.create_model(name)
    other.load_state_dict(model.state_dict(), assign=True)
    assert other.no_weight_decay() == model.no_weight_decay() == no_weight_decay(model)
    assert all(isinstance(p, nn.Parameter) and p.is_meta for p in other.parameters())
