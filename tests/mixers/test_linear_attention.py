"""Katharopoulos' linear attention, against its sums written out."""

import pytest
import torch
from torch.nn import functional as F

from matmix import create_mixer
from matmix.mixers.linear_attention import positive


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


def test_features_are_elu_plus_one_and_so_are_their_gradients() -> None:
    x = torch.tensor([-30.0, -1.5, -1e-3, 0.0, 1e-3, 2.0, 800.0], dtype=torch.float64).repeat(2, 3, 1).unsqueeze(2)
    x = x.transpose(1, 3).requires_grad_()
    expected = F.elu(x) + 1
    torch.testing.assert_close(positive(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(positive(x.detach()), expected, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(expected)
    for features in (positive(x), expected):
        (slope,) = torch.autograd.grad(features, x, weight, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x)
        torch.testing.assert_close(slope, weight * x.exp().clamp(max=1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(bend[x < 0], (weight * x.exp())[x < 0], rtol=1e-12, atol=1e-12)
        assert not bend[x > 0].any()
    near = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(positive, (near,), check_forward_ad=True, check_batched_grad=True)
    slopes = torch.func.vmap(torch.func.grad(lambda one: positive(one).square().sum()))(near)
    torch.testing.assert_close(slopes, torch.autograd.grad(positive(near).square().sum(), near)[0])
    assert float(positive(torch.tensor(-30.0))) > 0
