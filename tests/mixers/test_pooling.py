"""PoolFormer's pooling."""

import pytest
import torch

from matmix import create_mixer, load_published
from matmix.matrices import AveragePool
from matmix.mixers import pooling
from tests.fixtures import load_fixture


@pytest.mark.parametrize(
    ("name", "grid", "window"), [("mixer_pooling_7x9", (7, 9), 3), ("mixer_pooling_p5_8x8", (8, 8), 5)]
)
def test_published_output(name: str, grid: tuple[int, int], window: int) -> None:
    fixture = load_fixture(f"vision/{name}")
    mixer = create_mixer(f"pooling(window={window})", 6, grid)
    load_published(mixer, {}, source="sail-sg/metaformer")
    fixture.check(mixer(fixture.input().flatten(1, 2)).unflatten(1, grid))


def test_published_output_channels_first() -> None:
    fixture = load_fixture("vision/mixer_poolformer_pooling_7x9")
    mixer = create_mixer("pooling", 6, (7, 9))
    load_published(mixer, {}, source="sail-sg/poolformer")
    fixture.check(mixer(fixture.input().flatten(2).mT).mT.unflatten(-1, (7, 9)))


def test_masked_neighbours_are_not_counted() -> None:
    x = torch.tensor([1.0, 2.0, 30.0, 4.0]).view(1, 4, 1)
    mask = torch.tensor([[True, True, False, True]])
    out = create_mixer("pooling", 1)(x, mask=mask).flatten()
    torch.testing.assert_close(out, torch.tensor([0.5, -0.5, 0.0, 0.0]))


@pytest.mark.parametrize("window", [0, 2, "3"])
def test_refuses_window(window: object) -> None:
    with pytest.raises(ValueError, match="window must be a "):
        create_mixer(f"pooling(window={window!r})", 4)


def test_its_own_gradient() -> None:
    mixer = create_mixer("pooling", 3, (3, 4))
    x = torch.randn(2, 12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(mixer, (x,))
    grad = torch.func.vmap(torch.func.grad(lambda sample: mixer(sample.unsqueeze(0)).square().sum()))(x)
    torch.testing.assert_close(grad, torch.autograd.grad(mixer(x).square().sum(), x)[0])


def test_windows_are_counted_as_the_matrix_counts_them() -> None:
    """What the gradient divides by on CUDA."""
    shares = pooling._shares(torch.zeros(2, 3, 5, 7, dtype=torch.bfloat16), (3, 5))
    expected = AveragePool((5, 7), (3, 5))._weights().view(1, 1, 5, 7)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0)


@pytest.mark.parametrize("grid", [(2, 9), (3, 3), (6, 8)])
@pytest.mark.parametrize("window", [3, 5, 7])
def test_by_convolution_it_is_the_same(grid: tuple[int, int], window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = create_mixer(f"pooling(window={window})", 3, grid)
    x = torch.randn(2, grid[0] * grid[1], 3, requires_grad=True)
    before, weight = x.detach().clone(), torch.randn_like(x)

    def results() -> list[torch.Tensor]:
        with torch.no_grad():
            still = mixer(x)
        out = mixer(x)
        return [still, out, *torch.autograd.grad(out, x, weight)]

    expected = results()
    monkeypatch.setattr(pooling, "WORTH", 1)
    monkeypatch.setattr(pooling.F, "avg_pool2d", None)
    torch.testing.assert_close(results(), expected)
    assert torch.equal(x, before)
