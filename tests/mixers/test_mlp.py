"""MLP-Mixer's token MLP."""

import torch
from torch.nn import functional as F

from matmix import create_mixer, load_published
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
