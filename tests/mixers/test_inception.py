"""iFormer's Inception mixer."""

import pytest
import torch
from torch.nn import functional as F

from matmix import load_published
from matmix.mixers.inception import Inception
from matmix.testing import check_mixer
from tests.fixtures import load_fixture

SOURCE = "sail-sg/iFormer"
PUBLISHED = ["192_h6_a3_8x8", "320_h10_a7_7x7", "384_h12_a11_7x7", "96_h3_a1_8x8", "tiny_a1_6x6", "tiny_a2_6x6"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_output(name: str) -> None:
    fixture = load_fixture(f"vision/mixer_inception_{name}")
    config, x = fixture.config, fixture.input()
    mixer = Inception(
        config["dim"],
        tuple(x.shape[1:3]),
        head_dim=config["dim"] // config["num_heads"],
        heads=config["attention_head"],
        pool=config["pool_size"],
        qkv_bias=config["qkv_bias"],
    ).double()
    load_published(mixer, fixture.state(), source=SOURCE)
    out = mixer(x.flatten(1, 2)).view(x.shape)
    fixture.check(out, atol=fixture.data["tolerance"]["float64"]["atol"])


def _branches(mixer: Inception, x: torch.Tensor) -> torch.Tensor:
    """What the branches give before the fusion, ``(B, L, all channels)``."""
    wide = []
    with torch.no_grad():
        mixer.conv_fuse.weight.zero_()
        mixer.proj.bias.zero_()
        for start in range(0, mixer.proj.in_features, mixer.dim):
            mixer.proj.weight.zero_()
            rows = torch.arange(min(mixer.dim, mixer.proj.in_features - start))
            mixer.proj.weight[rows, start + rows] = 1
            wide.append(mixer(x)[..., : len(rows)])
    return torch.cat(wide, 2)


def test_published_high() -> None:
    fixture = load_fixture("vision/mixer_inception_high_5x7")
    x = fixture.input().flatten(2).mT
    mixer = Inception(12, (5, 7), head_dim=4).double()
    state = {name: v.flatten(1) if v.dim() == 4 and v.shape[1] > 1 else v for name, v in fixture.state().items()}
    mixer.high_mixer.load_state_dict(state)
    out = _branches(mixer, F.pad(x, (0, 4)))[..., :16]
    fixture.check(out.mT.reshape(2, 16, 5, 7))


def test_published_low() -> None:
    fixture = load_fixture("vision/mixer_inception_low_pool2_4x4")
    x = fixture.input().flatten(2).mT
    mixer = Inception(10, (4, 4), head_dim=4, heads=2, pool=2).double()
    mixer.low_mixer.load_state_dict(fixture.state())
    out = _branches(mixer, F.pad(x, (2, 0)))[..., -8:]
    fixture.check(out.mT.reshape(2, 8, 4, 4))


def test_heads_are_what_they_are_called() -> None:
    mixer = Inception(8, (4, 6), head_dim=4, pool=2).double()
    x = torch.randn(2, 24, 8, dtype=torch.float64)
    dense = mixer.matrix(x).to_dense()
    assert tuple(dense.shape) == (2, 4 + 2 + 4, 24, 24)
    pooled = dense[:, 4:6]
    assert torch.equal(pooled.sum(-1), torch.ones_like(pooled[..., 0])) and bool(((pooled == 0) | (pooled == 1)).all())
    attention = dense[:, 6:]
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    cells = attention.view(2, 4, 2, 2, 3, 2, 2, 2, 3, 2)
    torch.testing.assert_close(cells, cells[:, :, :, :1, :, :1, :, :1, :, :1].expand_as(cells))


@pytest.mark.parametrize("pool", [2, 3])
def test_laws_of_pooling(pool: int) -> None:
    def build(dim: int, grid: tuple[int, ...]) -> Inception:
        return Inception(dim, grid, head_dim=2, heads=2, pool=pool)

    check_mixer(build, laws=["product", "length", "mask_content", "gradients", "small", "samples", "precision"])


def test_padding_on_the_right_of_cells() -> None:
    """Cells count from the first position: a padded sequence equals the trimmed one where the padding comes last."""
    mixer = Inception(8, head_dim=4, pool=2).double()
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    mask = (torch.arange(11) < 7).expand(2, -1)
    torch.testing.assert_close(mixer(x, mask=mask)[:, :7], mixer(x[:, :7]))


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"must leave an even, positive number of the dim=8 channels"):
        Inception(8, (3, 5))
    with pytest.raises(ValueError, match="pool must be a whole number"):
        Inception(8, (3, 5), head_dim=2, pool=0)
    with pytest.raises(ValueError, match="grid of 2 axes"):
        Inception(8, (3, 5), head_dim=2).resize_((15,))
