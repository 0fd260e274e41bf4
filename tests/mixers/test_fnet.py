"""FNet against published numbers, and against its one-line definition."""

from __future__ import annotations

import pytest
import torch

from matmix import create_mixer
from tests.fixtures import load_fixture


@pytest.mark.parametrize("name", ["sequence/fnet_mixing", "vision/fnet_fourier_even"])
def test_published(name: str) -> None:
    fixture = load_fixture(name)
    x = fixture.input()
    fixture.check(create_mixer("fnet", x.shape[2]).double()(x))


@pytest.mark.parametrize("grid", [(1,), (6,), (7,), (1, 1), (4, 6), (5, 3), (1, 8)])
@pytest.mark.parametrize("dim", [1, 2, 5, 8])
def test_is_the_transform_over_tokens_and_channels(grid: tuple[int, ...], dim: int) -> None:
    x = torch.randn(2, torch.Size(grid).numel(), dim, dtype=torch.float64)
    expected = torch.fft.fftn(x.unflatten(1, grid), dim=tuple(range(1, 2 + len(grid)))).real.flatten(1, -2)
    torch.testing.assert_close(create_mixer("fnet", dim, grid)(x), expected)


def test_ortho_keeps_the_size_of_the_tokens() -> None:
    x = torch.randn(3, 64, 32)
    y = create_mixer("fnet(norm='ortho')", 32)(x)
    torch.testing.assert_close(y * (64 * 32) ** 0.5, create_mixer("fnet", 32)(x), rtol=1e-4, atol=1e-3)
    assert 0.6 < float(y.std() / x.std()) < 0.8  # the real part has half of the energy
    with pytest.raises(ValueError, match="norm must be one of 'none', 'ortho', got 'half'"):
        create_mixer("fnet(norm='half')", 32)
