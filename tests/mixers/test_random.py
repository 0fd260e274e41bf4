"""RandFormer's frozen matrix."""

import torch

from matmix import create_mixer, load_published
from tests.fixtures import load_fixture


def test_published_output() -> None:
    fixture = load_fixture("vision/mixer_random_mixing_5x7")
    mixer = create_mixer("random", 6, (5, 7)).double()
    load_published(mixer, fixture.state(), source="sail-sg/metaformer")
    x = fixture.input()
    fixture.check(mixer(x.flatten(1, 2)).unflatten(1, (5, 7)))


def test_matrix_is_row_stochastic_and_frozen() -> None:
    mixer = create_mixer("random", 6, (5, 7))
    entries = mixer.matrix(torch.randn(2, 35, 6)).to_dense()
    assert bool((entries > 0).all())
    torch.testing.assert_close(entries.sum(-1), torch.ones(1, 1, 35))
    assert not list(mixer.parameters()) and "random_matrix" in mixer.state_dict()


def test_resize_keeps_row_sums() -> None:
    mixer = create_mixer("random", 6, (5, 7)).double().resize_((9, 4))
    entries = mixer.matrix(torch.randn(2, 36, 6, dtype=torch.float64)).to_dense()
    # Enlarging an axis and adding up again leaves out a little at the border: row sums stay near 1.
    torch.testing.assert_close(entries.sum(-1), torch.ones(1, 1, 36, dtype=torch.float64), atol=0.02, rtol=0)
