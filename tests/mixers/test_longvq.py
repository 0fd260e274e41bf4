"""LongVQ: linear time is an identity, and the window tells near from far."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from matmix import after_step, auxiliary_losses, create_mixer
from matmix.mixers.base import Context
from matmix.mixers.longvq import LongVQ
from matmix.testing import check_mixer


def mixer_of(spec: str, dim: int = 6) -> LongVQ:
    torch.manual_seed(0)
    mixer = create_mixer(spec, dim).double().eval()
    assert isinstance(mixer, LongVQ)
    torch.nn.init.normal_(mixer.rel_pos_bias)
    torch.nn.init.normal_(mixer.mx_proj.weight)
    return mixer


def every_pair(mixer: LongVQ, x: Tensor, mask: Tensor) -> Tensor:
    """The matrix from its definition: quantised keys, a bias within the window, softmax over real tokens (up to i)."""
    query, key, _, _ = mixer._inner(x, Context((x.shape[1],), mask))
    words = mixer.quantizer.words(mixer.quantizer(key))
    scores, reach = query @ words.mT, mixer.window
    for i in range(x.shape[1]):
        for j in range(max(0, i - reach), min(x.shape[1], i + reach + 1)):
            scores[:, :, i, j] += mixer.rel_pos_bias[reach + j - i]
    seen = mask[:, None, None].expand_as(scores)
    seen = seen.tril() if mixer.causal else seen
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [3, 19, 70])
def test_is_the_softmax_over_every_pair(length: int, causal: bool) -> None:
    mixer = mixer_of(f"longvq(qk_dim=4, d_state=2, codes=5, window=3, causal={causal})")
    x = torch.randn(2, length, 6, dtype=torch.float64)
    mask = torch.ones(2, length).bool()
    mask[0, 1] = mask[1, -1] = False
    matrix = mixer.matrix(x, mask=mask)
    torch.testing.assert_close(matrix.to_dense()[:, :, :, :], every_pair(mixer, x, mask))
    values = torch.randn(2, 1, length, 3, dtype=torch.float64)
    torch.testing.assert_close(matrix.matmul(values), every_pair(mixer, x, mask) @ values)


@pytest.mark.slow
def test_causal_laws_of_compilers() -> None:
    factory = lambda dim, grid: LongVQ(dim, grid, qk_dim=4, d_state=2, codes=3, window=2, causal=True)
    check_mixer(factory, laws=["compiles", "compiles_steps", "exports"])


def test_codes_know_no_distance_and_the_window_does() -> None:
    mixer = mixer_of("longvq(qk_dim=4, d_state=2, codes=3, window=2)")
    x = torch.randn(1, 20, 6, dtype=torch.float64)
    _, key, _, _ = mixer._inner(x, Context((20,), None))
    same = mixer.quantizer(key)[0, 0]
    row = mixer.matrix(x).to_dense()[0, 0, 10]
    far = (torch.arange(20) - 10).abs() > 2
    for code in same.unique():
        entries = row[far & (same == code)]
        torch.testing.assert_close(entries, entries[:1].expand_as(entries))
    mixer.rel_pos_bias.data[3] = 5.0  # the next token
    assert mixer.matrix(x).to_dense()[0, 0].diagonal(1).mean() > 0.5


def test_the_codebook_moves_after_the_step_by_real_tokens_alone() -> None:
    mixer = mixer_of("longvq(qk_dim=4, d_state=2, codes=3, window=2, decay=0.5)").train()
    x = torch.randn(2, 8, 6, dtype=torch.float64)
    mask = torch.ones(2, 8).bool()
    mask[:, 5:] = False
    with auxiliary_losses(mixer) as auxiliary:
        out, loss = mixer(x, mask=mask), auxiliary()
    assert isinstance(loss, Tensor)
    loss.backward(retain_graph=True)
    assert mixer.gamma.grad is not None and bool((mixer.gamma.grad[1] != 0).any())
    assert bool((mixer.gamma.grad[0] == 0).all())  # queries are not committed
    out.sum().backward()
    assert float(mixer.quantizer.c_count.sum()) == 3
    after_step(mixer)
    assert float(mixer.quantizer.c_count.sum()) == pytest.approx(0.5 * 3 + 0.5 * 10)


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="window must be a whole number"):
        create_mixer("longvq(window=0)", 8)
