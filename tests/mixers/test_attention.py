"""CAFormer's and PoolFormer's attention."""

import pytest
import torch

from matmix import create_mixer, load_published
from matmix.ops.rotary import turn_pairs
from matmix.testing import check_mixer
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
    narrow = create_mixer("attention(heads=2, head_dim=4)", 16)
    assert narrow.heads == 2 and tuple(narrow.qkv.weight.shape) == (24, 16) and narrow.proj.in_features == 8
    with pytest.raises(ValueError, match=r"heads must be a whole number in \[1, .*, got 0"):
        create_mixer("attention(heads=0)", 8)


def test_dropout_of_the_matrix() -> None:
    """In training the matrix that runs is the one that is shown: some entries are gone, the others are larger."""
    mixer = create_mixer("attention(heads=2, head_dim=4, dropout=0.25)", 8).double()
    x = torch.randn(3, 30, 8, dtype=torch.float64)
    kept = mixer.eval().matrix(x).to_dense()
    torch.manual_seed(0)
    thinned = mixer.train().matrix(x).to_dense()
    gone = thinned == 0
    assert 0.23 < gone.double().mean() < 0.27
    torch.testing.assert_close(thinned[~gone], kept[~gone] / 0.75)
    values = mixer._heads(x)[2]
    torch.manual_seed(0)
    torch.testing.assert_close(mixer(x), mixer.merge(thinned @ values, None))
    with pytest.raises(ValueError, match=r"dropout must be a finite number in \[0, 1\), got 1"):
        create_mixer("attention(dropout=1)", 8)


def test_rotary_turns_pairs_by_their_place() -> None:
    """Against complex numbers: channels 2 m and 2 m + 1 are one, times exp(i place 10000^(-2 m / E)), whose product
    with another's conjugate hangs on the distance alone. The whole head turns, queries and keys alike."""
    torch.manual_seed(0)
    mixer = create_mixer("attention(head_dim=6, rotary=True)", 12).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    query, key, _ = mixer._heads(x)
    rate = torch.tensor([10000 ** (-2 * m / 6) for m in range(3)], dtype=torch.float64)
    distance = torch.arange(9).unsqueeze(1) - torch.arange(9)
    turns = torch.polar(torch.ones(9, 9, 3, dtype=torch.float64), distance.unsqueeze(-1) * rate)
    q, k = (torch.view_as_complex(t.unflatten(-1, (3, 2)).contiguous()) for t in (query, key))
    scores = torch.einsum("bhim,bhjm,ijm->bhij", q, k.conj(), turns).real / 6**0.5
    torch.testing.assert_close(mixer.matrix(x).to_dense(), scores.softmax(-1))
    plain = create_mixer("attention(head_dim=6)", 12).double()
    plain.load_state_dict(mixer.state_dict())
    assert (mixer(x) - plain(x)).abs().max() > 1e-3  # nothing learned is added, but places are told apart
    with pytest.raises(ValueError, match="even head_dim, got 3"):
        create_mixer("attention(head_dim=3, rotary=True)", 12)


@pytest.mark.slow
def test_rotary_and_causal_is_under_every_law() -> None:
    """The laws of options turn over one at a time; this pair is what a language model has."""
    check_mixer(lambda dim, grid: create_mixer("attention(head_dim=4, causal=True, rotary=True)", dim, grid))


def test_rotary_places_are_exact_far_out() -> None:
    """A sequence behind 20,000 tokens of padding is the sequence alone, though float32 angles would be off there."""
    mixer = create_mixer("attention(head_dim=8, rotary=True, causal=True)", 8)
    x = torch.randn(1, 20_040, 8, generator=torch.Generator().manual_seed(0))
    segments = (torch.arange(20_040) >= 20_000).long().unsqueeze(0)
    matrix, alone = mixer.matrix(x[:, -40:]), mixer.matrix(x, segments=segments)
    far = alone._rows(20_000, 20_040)[..., 20_000:]
    torch.testing.assert_close(far, matrix.to_dense(), rtol=1e-5, atol=1e-7)
    turned = turn_pairs(x[:, None], torch.arange(20_040))
    scores = (turned[:, :, -40:] @ turned[:, :, -40:].mT, (t := turn_pairs(x[:, None, -40:], torch.arange(40))) @ t.mT)
    torch.testing.assert_close(*scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_causal_cache_is_the_forward(masked: bool, rotary: bool) -> None:
    torch.manual_seed(1)
    mixer = create_mixer(f"attention(head_dim=4, causal=True, qkv_bias=True, rotary={rotary})", 8).double()
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
