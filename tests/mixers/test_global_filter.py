"""GFNet's and GFFormer's filters against published numbers; resizing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from matmix import load_published
from matmix.mixers.global_filter import GlobalFilter
from matmix.testing import check_mixer
from tests.fixtures import load_fixture


@pytest.mark.parametrize(("name", "grid"), [("even", (8, 8)), ("odd", (7, 9))])
def test_gfnet(name: str, grid: tuple[int, ...]) -> None:
    fixture = load_fixture(f"vision/gfnet_global_filter_{name}")
    module = GlobalFilter(8, grid).double()
    load_published(module, fixture.state(), source="raoyongming/GFNet")
    fixture.check(module(fixture.input()))


@pytest.mark.parametrize("grid", [(7, 7), (7, 9), (8, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gfformer(grid: tuple[int, int], dtype: torch.dtype) -> None:
    fixture = load_fixture(f"vision/mixer_global_filter_{grid[0]}x{grid[1]}")
    module = GlobalFilter(8, grid, bottleneck=2).to(dtype)
    load_published(module, fixture.state(dtype), source="okojoalg/dfformer")
    image = fixture.input(dtype=dtype)
    out = module(image.flatten(1, 2)).view_as(image)
    if dtype == torch.float64:
        fixture.check(out, "output_float64")
    else:
        fixture.check(out, atol=fixture.data["tolerance"]["float32"]["atol"], rtol=1e-4)


def drawn(grid: tuple[int, ...], **options: Any) -> GlobalFilter:
    torch.manual_seed(0)
    return GlobalFilter(3, grid, **options).double()


@pytest.mark.parametrize("grid", [(7,), (8,), (4, 6), (5, 7)])
def test_resize_keeps_a_local_kernel(grid: tuple[int, ...]) -> None:
    """A filter that only looks one token far does the same on a larger grid, and again after coming back."""
    module = drawn(grid)
    kernel = torch.zeros(3, *grid, dtype=torch.float64)
    near = tuple(torch.tensor([-1, 0, 1]) for _ in grid)
    kernel[(slice(None), *torch.meshgrid(*near, indexing="ij"))] = torch.randn(
        3, *(3 for _ in grid), dtype=torch.float64
    )
    spectrum = torch.fft.rfftn(kernel, dim=tuple(range(1, 1 + len(grid))))
    module.complex_weights.data = torch.view_as_real(spectrum.movedim(0, -1)).contiguous()
    before = module.complex_weights.detach().clone()

    large = tuple(n + 3 for n in grid)
    x = torch.zeros(1, *grid, 3, dtype=torch.float64)
    x[(0, *(n // 2 for n in grid))] = 1  # the response stays clear of the border
    wide = torch.zeros(1, *large, 3, dtype=torch.float64)
    wide[(slice(None), *(slice(0, n) for n in grid))] = x
    small_out = module(x.flatten(1, -2)).view_as(x)
    large_out = module.resize_(large)(wide.flatten(1, -2)).view_as(wide)
    torch.testing.assert_close(large_out[(slice(None), *(slice(0, n) for n in grid))], small_out)
    torch.testing.assert_close(module.resize_(grid).complex_weights.detach(), before)


@pytest.mark.parametrize(("grid", "large"), [((6,), (11,)), ((4, 6), (9, 8)), ((5, 4), (5, 10))])
def test_resize_up_and_down_is_the_projected_filter(grid: tuple[int, ...], large: tuple[int, ...]) -> None:
    module = drawn(grid)
    x = torch.randn(2, torch.Size(grid).numel(), 3, dtype=torch.float64)
    before = module(x)
    kernel = module.matrix(x).kernel()
    there = module.resize_(large).matrix(torch.randn(1, torch.Size(large).numel(), 3).double()).kernel()
    # Even axes: the tap at half the axis is both the most positive and the most negative lag; it is split in two.
    torch.testing.assert_close(there.sum(), kernel.sum())
    if all(n % 2 for n in grid):
        torch.testing.assert_close(module.resize_(grid)(x), before)


def test_resize_bicubic_is_the_published_one() -> None:
    module = drawn((8, 6))
    weights = module.complex_weights.detach().clone()
    module.resize_((14, 10), method="bicubic")
    image = weights.reshape(1, 8, 4, 6).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(image, (14, 6), mode="bicubic", align_corners=True)
    torch.testing.assert_close(module.complex_weights.detach(), wanted.permute(0, 2, 3, 1).reshape(14, 6, 3, 2))


def test_errors() -> None:
    with pytest.raises(ValueError, match="bottleneck must be a finite number"):
        GlobalFilter(8, (4, 4), bottleneck=0.0)
    with pytest.raises(ValueError, match="method must be 'kernel' or 'bicubic', got 'area'"):
        drawn((4, 4)).resize_((5, 5), method="area")
    module = drawn((4, 4))
    with pytest.raises(ValueError, match="over 2 axes"):
        module.resize_((16,))
    assert module.grid == (4, 4)


def test_laws_of_the_bottleneck() -> None:
    laws = ["product", "length", "mask_content", "gradients", "small", "compiles"]
    check_mixer(lambda dim, grid: GlobalFilter(dim, grid, bottleneck=1.5), laws=laws)
