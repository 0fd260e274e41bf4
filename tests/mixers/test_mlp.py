"""MLP-Mixer's token MLP."""

import pytest
import torch
from torch.nn import functional as F

from matmix import create_mixer, load_published
from matmix.testing import check_mixer
from tests.fixtures import load_fixture


def _block() -> tuple:
    fixture = load_fixture("vision/mixer_original_block_6x6")
    state = fixture.state()
    token = {name.removeprefix("1."): value for name, value in state.items() if name.startswith("1.fn.")}
    mixer = create_mixer("mlp(hidden=72)", 8, (6, 6)).double()
    load_published(mixer, token, source="okojoalg/raft-mlp")
    return fixture, state, mixer


def test_published_output() -> None:
    """The whole block of raft-mlp's MLP-Mixer, with the mixer in the place of its token MLP."""
    fixture, state, mixer = _block()
    x = fixture.input()
    x = x + mixer(F.layer_norm(x, (8,), state["1.norm.1.weight"], state["1.norm.1.bias"]))
    hidden = F.layer_norm(x, (8,), state["3.norm.weight"], state["3.norm.bias"])
    hidden = F.gelu(F.linear(hidden, state["3.fn.0.weight"], state["3.fn.0.bias"]))
    fixture.check(x + F.linear(hidden, state["3.fn.3.weight"], state["3.fn.3.bias"]))


def test_is_the_perceptron() -> None:
    """gelu(z) = z Phi(z): the matrix form is the two layers, exactly."""
    fixture, _, mixer = _block()
    x = fixture.input()
    plain = mixer.fc2(F.gelu(mixer.fc1(x.mT))).mT
    torch.testing.assert_close(mixer(x), plain, rtol=1e-12, atol=1e-12)
    matrix = mixer.matrix(x)
    assert tuple(matrix.shape) == (2, 8, 36, 37)


@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_one_layer(act: str) -> None:
    """TSMixer's mixer along time: one layer and its activation."""
    mixer, x = create_mixer(f"mlp(hidden=0, act={act!r})", 3, (7,)).double(), torch.randn(2, 7, 3, dtype=torch.float64)
    plain = getattr(F, act)(mixer.fc1(x.mT)).mT
    torch.testing.assert_close(mixer(x), plain)
    values = torch.cat((x.mT, x.new_ones(2, 3, 1)), 2).unsqueeze(-1)
    torch.testing.assert_close((mixer.matrix(x).to_dense() @ values).squeeze(-1).mT, plain)
    assert mixer.resize_((9,))(torch.randn(2, 9, 3, dtype=torch.float64)).shape == (2, 9, 3)
    with pytest.raises(ValueError, match="hidden must be a whole number"):
        create_mixer("mlp(hidden=-1)", 3, (7,))


@pytest.mark.slow
def test_one_layer_is_under_every_law() -> None:
    check_mixer(lambda dim, grid: create_mixer("mlp(hidden=0)", dim, grid))
