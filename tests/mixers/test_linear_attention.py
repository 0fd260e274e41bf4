"""Katharopoulos' linear attention, against its sums written out."""

import pytest
import torch
from torch.nn import functional as F

from matmix import create_mixer


@pytest.mark.parametrize("causal", [False, True])
def test_is_its_definition(causal: bool) -> None:
    torch.manual_seed(0)
    mixer = create_mixer(f"linear_attention(head_dim=3, causal={causal})", 6).double()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    query, key, value = mixer.qkv(x).view(2, 7, 3, 2, 3).unbind(2)
    scores = torch.einsum("bihe,bjhe->bhij", F.elu(query) + 1, F.elu(key) + 1)
    scores = scores.tril() if causal else scores
    mixed = torch.einsum("bhij,bjhe->bihe", scores / scores.sum(-1, keepdim=True), value)
    torch.testing.assert_close(mixer(x), mixer.proj(mixed.flatten(2)))
    torch.testing.assert_close(mixer.matrix(x).to_dense().sum(-1), torch.ones(2, 2, 7, dtype=torch.float64))


def test_state_does_not_grow() -> None:
    mixer = create_mixer("linear_attention(head_dim=4, causal=True)", 8)
    _, state = mixer.prefill(torch.randn(2, 50, 8))
    assert [tuple(part.shape) for part in state] == [(2, 2, 4, 4), (2, 2, 4)]
    assert [tuple(p.shape) for p in mixer.step(torch.randn(2, 8), state)[1]] == [(2, 2, 4, 4), (2, 2, 4)]
