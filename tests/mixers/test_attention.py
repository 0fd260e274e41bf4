"""CAFormer's and PoolFormer's attention."""

import pytest
import torch

from matmix import create_mixer, load_published
from tests.fixtures import load_fixture


def test_published_output() -> None:
    fixture = load_fixture("vision/mixer_attention_7x9")
    mixer = create_mixer("attention", 64, (7, 9)).double()
    load_published(mixer, fixture.state(), source="sail-sg/metaformer")
    fixture.check(mixer(fixture.input().flatten(1, 2)).unflatten(1, (7, 9)))


def test_published_output_with_output_bias() -> None:
    fixture = load_fixture("vision/mixer_poolformer_attention_5x6")
    mixer = create_mixer("attention(proj_bias=True)", 64, (5, 6)).double()
    load_published(mixer, fixture.state(), source="sail-sg/poolformer")
    fixture.check(mixer(fixture.input().flatten(2).mT).mT.unflatten(-1, (5, 6)))


def test_inner_width_of_a_width_that_heads_do_not_divide() -> None:
    mixer = create_mixer("attention", 40)
    assert mixer.heads == 1 and tuple(mixer.qkv.weight.shape) == (96, 40)
    assert create_mixer("attention", 8).heads == 1


@pytest.mark.parametrize("masked", [False, True])
def test_causal_cache_is_the_forward(masked: bool) -> None:
    torch.manual_seed(1)
    mixer = create_mixer("attention(head_dim=4, causal=True, qkv_bias=True)", 8).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :3] = not masked
    whole = mixer(x, mask=mask)
    out, state = mixer.prefill(x[:, :5], mask=mask[:, :5] if masked else None)
    steps = [out]
    for token in x[:, 5:].unbind(1):
        out, state = mixer.step(token, state)
        steps.append(out.unsqueeze(1))
    torch.testing.assert_close(torch.cat(steps, 1), whole)
    assert tuple(state[0].shape) == (2, 2, 9, 4)
