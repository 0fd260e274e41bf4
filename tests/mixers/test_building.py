"""Building, moving and saving of every mixer with accelerate and safetensors; torch's own ways are laws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import matmix
from matmix.testing import MIXER_LAWS, apply_law
from matmix.testing import check as checks
from tests.building import check_building
from tests.laws import mixer_names, variants

LAWS = ("built_on_meta", "default_device", "default_dtype", "moved", "stored")
VARIANTS = variants()


@pytest.mark.parametrize("name", mixer_names())
def test_a_mixer(name: str, tmp_path: Path) -> None:
    info = matmix.mixer_info(name)
    factory, dim = checks.factory_of(info)
    grid = (3, 5) if 2 in info.traits.dims else (7,)
    x = torch.randn(2, 15 if 2 in info.traits.dims else 7, dim)
    check_building(lambda: factory(dim, grid), x, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_option(variant: str, tmp_path: Path) -> None:
    factory, (_, dim) = VARIANTS[variant], checks.factory_of(matmix.mixer_info(variant.split("(")[0]))
    traits = checks.traits_of(factory, dim)
    for law in LAWS:  # on an image where it takes one: how a mixer is built and stored does not hang on the axes
        apply_law(law, MIXER_LAWS[law], checks.mixer_cases(factory, dim, traits, law)[-1])
    case = checks.mixer_cases(factory, dim, traits, LAWS[0])[-1]
    check_building(lambda: factory(dim, case.grid), case.tokens(torch.float32), tmp_path)


@pytest.mark.parametrize("name", mixer_names())
def test_names_that_are_marked_exist(name: str) -> None:
    info = matmix.mixer_info(name)
    factory, dim = checks.factory_of(info)
    mixer = factory(dim, (3, 5) if 2 in info.traits.dims else (7,))
    for module in mixer.modules():
        marks = {*getattr(module, "undecayed", ()), *getattr(module, "optim_settings", ())}
        missing = {n for n in marks if not hasattr(module, n)}
        assert not missing, f"{type(module).__name__} has no {missing}"
