"""The dense mixer: JustDense, Hydra's dense class, PoolFormer's SpatialFc."""

import pytest
import torch

from matmix import create_mixer, load_published
from matmix.mixers.dense import Dense
from tests.fixtures import load_fixture


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("time_series/dense_mixer", "Thrillcrazyer/JustDense"),
        ("sequence/hydra_class_dense_di_L8_h2", "goombalab/hydra"),
        ("sequence/hydra_class_dense_di_L33_h4", "goombalab/hydra"),
    ],
)
def test_published_output(name: str, source: str) -> None:
    fixture = load_fixture(name)
    x = fixture.input("hidden_states")
    heads = fixture.state()["M"].shape[0]
    mixer = Dense(x.shape[2], (x.shape[1],), heads=heads, published=True).double()
    load_published(mixer, fixture.state(), source=source)
    fixture.check(mixer(x))
    if "outputs" in fixture.data:
        fixture.check(mixer.matrix(x).to_dense()[0], key="matrix_batch0")


def test_spatial_fc() -> None:
    fixture = load_fixture("vision/mixer_spatial_fc_5x6")
    mixer = create_mixer("spatial_fc", 4, (5, 6)).double()
    load_published(mixer, fixture.state(), source="sail-sg/poolformer")
    out = mixer(fixture.input().flatten(2).mT)
    fixture.check(out.mT.unflatten(-1, (5, 6)))
    same = create_mixer("dense(heads=1)", 4, (5, 6)).double()
    same.load_state_dict(mixer.state_dict())
    assert torch.equal(same(x := fixture.input().flatten(2).mT), mixer(x))


def test_it_mixes_from_the_start() -> None:
    """Outputs have the variance of independent inputs, and nearly all of it comes from other tokens."""
    torch.manual_seed(0)
    mixer, published = Dense(64, (96,)), Dense(64, (96,), heads=8, published=True)
    x = torch.randn(8, 96, 64)
    assert 0.9 < mixer(x).var() < 1.1
    share = [
        float(entries.tril(-1).square().sum() + entries.triu(1).square().sum()) / float(entries.square().sum())
        for entries in (mixer.matrix(x).to_dense().detach(), published.matrix(x).to_dense().detach())
    ]
    assert share[0] > 0.95 and share[1] < 0.05


def test_resize_and_back() -> None:
    """A smooth matrix survives a change of resolution, published scale included."""
    for published in (False, True):
        mixer = Dense(4, (8, 6), heads=2, published=published).double()
        row = torch.linspace(0, 1, 48, dtype=torch.float64)
        with torch.no_grad():
            mixer.M.copy_((0.5 + 0.1 * row).expand(2, 48, 48))
        x = torch.ones(1, 48, 4, dtype=torch.float64)
        before = mixer(x).mean()
        after = mixer.resize_((12, 9))(torch.ones(1, 108, 4, dtype=torch.float64)).mean()
        torch.testing.assert_close(after, before, rtol=0.02, atol=0)


@pytest.mark.parametrize("heads", [0, 3, -1])
def test_refuses_heads(heads: int) -> None:
    with pytest.raises(ValueError, match=r"heads must be a (positive divisor of dim=8|whole number)"):
        Dense(8, (5,), heads=heads)
