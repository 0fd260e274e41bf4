"""AFNO in its published forms."""

import pytest
import torch

from matmix import load_published
from matmix.mixers.afno import AFNO
from matmix.testing import check_mixer
from tests.fixtures import load_fixture


@pytest.mark.parametrize(
    ("name", "grid"),
    [("afno1d_even_half", (12,)), ("afno1d_odd", (13,)), ("afno2d_even", (8, 8)), ("afno2d_kept_modes", (8, 8))],
)
def test_published_output(name: str, grid: tuple[int, ...]) -> None:
    fixture = load_fixture(f"vision/{name}")
    config = fixture.config
    mixer = AFNO(
        config["hidden_size"],
        grid,
        groups=config["num_blocks"],
        shrink=config["sparsity_threshold"],
        fraction=config["hard_thresholding_fraction"],
        published=True,
    ).double()
    load_published(mixer, fixture.state(), source="NVlabs/AFNO-transformer")
    fixture.check(mixer(fixture.input()), atol=fixture.data["tolerance"]["float64_atol"], rtol=0)


def test_published_bottleneck() -> None:
    """DFFormer's AFNO model, in float64 and as published in float32."""
    fixture = load_fixture("vision/mixer_afno2d_8x8")
    for dtype, key in ((torch.float64, "output_float64"), (torch.float32, "output")):
        mixer = AFNO(8, (8, 8), bottleneck=2.0).to(dtype)
        load_published(mixer, fixture.state(dtype), source="okojoalg/dfformer")
        x = fixture.input(dtype=dtype)
        tolerance = fixture.data["tolerance"]["float64" if dtype == torch.float64 else "float32"]
        fixture.check(mixer(x.flatten(1, 2)).view(x.shape), key=key, **tolerance)


@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("published", [False, True])
def test_laws_of_fewer_modes(fraction: float, published: bool) -> None:
    def build(dim: int, grid: tuple[int, ...]) -> AFNO:
        return AFNO(dim, grid, groups=2, fraction=fraction, published=published, mlp_ratio=2.0)

    check_mixer(build, laws=["product", "length", "small"])


@pytest.mark.parametrize(("grid", "fraction"), [((9,), 0.5), ((8, 9), 0.5), ((7, 10), 0.3), ((6, 6), 1.0)])
def test_keeps_the_lowest_modes(grid: tuple[int, ...], fraction: float) -> None:
    """What the mixer adds has only modes below the fraction of every axis, in both directions of the rows."""
    mixer = AFNO(4, grid, groups=2, fraction=fraction, shrink=0.0).double()
    length = torch.Size(grid).numel()
    x = torch.randn(2, length, 4, dtype=torch.float64)
    added = (mixer(x) - x).mT.unflatten(-1, grid)
    strength = torch.fft.fftn(added, dim=tuple(range(2, added.dim()))).abs().amax((0, 1))
    for axis, size in enumerate(grid):
        modes = torch.arange(size)
        kept = torch.minimum(modes, size - modes) < max(1, int((size // 2 + 1) * fraction))
        line = strength.movedim(axis, 0).reshape(size, -1).amax(1)
        assert torch.equal(line > 1e-10 * strength.max(), kept), (axis, line)


def test_the_bottleneck_obeys_the_laws() -> None:
    def build(dim: int, grid: tuple[int, ...]) -> AFNO:
        return AFNO(dim, grid, groups=4, bottleneck=1.5)

    check_mixer(build, laws=["product", "gradients", "mask_content", "precision", "keeps"])


def test_refuses() -> None:
    for options, message in (
        ({"groups": 3}, "groups must be a positive divisor of the 8 inner channels"),
        ({"shrink": -1.0}, "shrink must be a finite number"),
        ({"fraction": 0.0}, r"fraction must be a finite number in \(0, 1\]"),
        ({"mlp_ratio": 0.1}, "mlp_ratio must leave"),
        ({"bottleneck": 0.01}, "bottleneck must leave"),
    ):
        with pytest.raises(ValueError, match=message):
            AFNO(8, (3, 5), **options)
