"""``torch.jit.trace``: the traced program gives what the mixer gives, at the traced batch and at others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import matmix
from matmix.testing import MixerCase, factory_of
from matmix.testing.compare import close
from tests.vision.families import FAMILIES, SIZE, small

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore:.*torch.jit:FutureWarning"
)


def _holds(name: str, module: nn.Module, inputs: list[Tensor]) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(module, (inputs[0],), check_trace=False)
        for x in inputs:
            close(traced(x), module(x), f"{name}, {tuple(x.shape)}")


def _cases() -> list[Any]:
    """Every mixer on a sequence if it takes one, else on an image; images of those that take both are slow tests."""
    dims = {name: matmix.mixer_info(name).traits.dims for name in matmix.list_mixers()}
    first = [pytest.param(name, (13,) if 1 in dims[name] else (3, 7), id=name) for name in dims]
    both = [name for name in dims if {1, 2} <= set(dims[name])]
    return first + [pytest.param(name, (3, 7), id=f"{name} on images", marks=pytest.mark.slow) for name in both]


@pytest.mark.parametrize(("name", "grid"), _cases())
def test_mixers(name: str, grid: tuple[int, ...]) -> None:
    factory, dim = factory_of(matmix.mixer_info(name))
    case = MixerCase(factory, dim, grid, batch=3)
    _holds(name, case.build(torch.float32), [case.on(grid, batch).tokens(torch.float32) for batch in (3, 1, 5)])


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_vision_models(name: str) -> None:
    torch.manual_seed(0)
    images = torch.randn(5, 3, SIZE, SIZE)
    _holds(name, small(name).eval(), [images[:3], images[:1], images])
