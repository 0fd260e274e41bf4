"""The laws on a CUDA device, and the CPU's results there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import matmix
from matmix.matrices import Matrix
from matmix.mixers.base import Grid
from matmix.testing import MATRIX_LAWS, MIXER_LAWS, SLOW_MIXER_LAWS, MatrixCase, MixerCase, apply_law, close
from matmix.testing import check as checks
from tests.laws import matrix_classes, mixer_names, pairs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICE = "cuda"
GRIDS: tuple[Grid, ...] = ((1,), (33,), (3, 5))
MIXER, MIXER_IDS = pairs(MIXER_LAWS, mixer_names(), traced=False)
MATRIX, MATRIX_IDS = pairs(MATRIX_LAWS, matrix_classes(), traced=False)


@pytest.mark.parametrize(("law", "name"), MIXER, ids=MIXER_IDS)
def test_mixer(law: str, name: str) -> None:
    info = matmix.mixer_info(name)
    factory, dim = checks.factory_of(info)
    for case in checks.mixer_cases(factory, dim, info.traits, law, device=DEVICE):
        if case.grid in GRIDS:
            apply_law(law, MIXER_LAWS[law], case)


@pytest.mark.parametrize(("law", "cls"), MATRIX, ids=MATRIX_IDS)
def test_matrix(law: str, cls: type[Matrix]) -> None:
    for size in checks.MATRIX_CASES:
        if size["grid"] in GRIDS or size["heads"] > 2:
            apply_law(law, MATRIX_LAWS[law], MatrixCase(cls, **size, device=DEVICE))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", mixer_names())
def test_as_on_the_cpu(name: str) -> None:
    """Outputs and all gradients, at sizes where kernels meet whole blocks and tails."""
    info = matmix.mixer_info(name)
    factory, dim = checks.factory_of(info)
    grids = [grid for grid in ((7,), (150,), (9, 17)) if len(grid) in info.traits.dims]
    for case in (MixerCase(factory, 2 * dim, grid, 3) for grid in grids):
        expected = _pass(case, torch.float64)
        for dtype in (torch.float64, torch.float32):
            got = _pass(replace(case, device=DEVICE), dtype)
            assert got.keys() == expected.keys()
            for what, value in got.items():
                # Gradients of float32 add up the rounding of every token.
                tolerance = 1e-9 if dtype == torch.float64 else 1e-4
                close(value.cpu(), expected[what], f"{name} {case.grid} {dtype}: {what}", tolerance=tolerance)


def _pass(case: MixerCase, dtype: torch.dtype) -> dict[str, Tensor]:
    mixer, x = case.build(dtype), case.tokens(dtype).requires_grad_()
    out = mixer(x)
    (out * case.tokens(dtype, name="weight")).sum().backward()
    assert x.grad is not None
    grads = {f"gradient of {n}": p.grad for n, p in mixer.named_parameters() if p.grad is not None}
    return {"forward": out.detach(), "gradient of the tokens": x.grad, **grads}


@pytest.mark.slow
@pytest.mark.parametrize("name", mixer_names())
def test_long_and_compiled(name: str) -> None:
    info = matmix.mixer_info(name)
    factory, dim = checks.factory_of(info)
    for law in ("long", "compiles_by_inductor"):
        cases = checks.mixer_cases(factory, dim, info.traits, law, device=DEVICE)
        apply_law(law, SLOW_MIXER_LAWS[law], cases[-1])
