"""VQ attention: the published quantiser, and the linear time as an identity."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from matmix import after_step, auxiliary_losses, create_mixer
from matmix.mixers.vq_attention import VQAttention, normalize_heads
from matmix.ops.vector_quantizer import VectorQuantizer
from matmix.testing import check_mixer
from tests.fixtures import load_fixture


def test_quantiser_is_published() -> None:
    fixture = load_fixture("sequence/transformer_vq_quantizer")
    vectors, mask = fixture.input("vecs"), fixture.input("loss_mask").bool()
    quantizer = VectorQuantizer(2, 5, 4, decay=fixture.config["c_gamma"]).double()
    quantizer.c_sum.copy_(fixture.input("c_sum"))
    quantizer.c_count.copy_(fixture.input("c_count"))
    codes = quantizer(vectors)
    fixture.check(codes, "shortcodes")
    fixture.check(quantizer.words(codes))
    fixture.check(quantizer.squared_error(vectors, codes), "squared_error")
    fixture.check(quantizer.codebook(), "codebook")
    out = torch.zeros(1, dtype=vectors.dtype, requires_grad=True)
    quantizer.note(out, vectors, codes, mask).sum().backward()
    quantizer.after_step()
    fixture.check(quantizer.c_sum, "c_sum_target")
    fixture.check(quantizer.c_count, "c_count_target")


def quadratic(mixer: VQAttention, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the quantised keys (up to the token, if causal), written out; and the keys."""
    query, value = (t.unflatten(-1, (mixer.heads, -1)).transpose(1, 2) for t in mixer.qv(x).chunk(2, -1))
    query, keys = normalize_heads(query.transpose(1, 2).flatten(2), mixer.heads), mixer._keys(x)
    words = mixer.quantizer.words(mixer.quantizer(keys))
    scores = (query @ words.mT).masked_fill(~mask[:, None, None], -torch.inf)
    if mixer.causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    return mixer.proj((scores.softmax(-1).nan_to_num() @ value).transpose(1, 2).flatten(2)), keys


def test_is_attention_over_quantised_keys() -> None:
    torch.manual_seed(0)
    mixer = create_mixer("vq_attention(head_dim=4, codes=5)", 8).double().eval()
    x = torch.randn(2, 23, 8, dtype=torch.float64)
    mask = torch.rand(2, 23) < 0.7
    expected, _ = quadratic(mixer, x, mask)
    torch.testing.assert_close(mixer(x, mask=mask)[mask], expected[mask])
    assert int(torch.linalg.matrix_rank(mixer.matrix(x).to_dense()).max()) <= 5


@pytest.mark.parametrize("length", [1, 23, 150])
def test_causal_is_attention_over_the_quantised_keys_so_far(length: int) -> None:
    torch.manual_seed(0)
    mixer = create_mixer("vq_attention(head_dim=4, codes=5, causal=True)", 8).double().eval()
    assert isinstance(mixer, VQAttention)
    x, mask = torch.randn(2, length, 8, dtype=torch.float64), torch.rand(2, length) < 0.7
    expected, _ = quadratic(mixer, x, mask)
    torch.testing.assert_close(mixer(x, mask=mask)[mask], expected[mask])


@pytest.mark.slow
def test_causal_laws_of_compilers() -> None:
    factory = lambda dim, grid: VQAttention(dim, grid, head_dim=4, codes=3, causal=True)
    check_mixer(factory, laws=["compiles", "compiles_steps", "exports"])


def test_causal_keys_of_a_code_so_far_share_the_straight_through_gradient() -> None:
    """The gradient of row i's codewords, handed to the keys up to i in equal parts; nothing comes from later rows."""
    torch.manual_seed(1)
    mixer = create_mixer("vq_attention(head_dim=4, codes=2, causal=True)", 4).double().eval()
    assert isinstance(mixer, VQAttention)
    x, weight = torch.randn(1, 7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    keys = mixer._keys(x).detach().requires_grad_()
    mixer._keys = lambda _: keys  # type: ignore[method-assign]
    (mixer(x)[0] * weight).sum().backward()
    codes = mixer.quantizer(keys)
    book = mixer.quantizer.words(codes).detach()[0, 0]
    query, value = mixer._queries(x)
    expected = torch.zeros(7, 4, dtype=torch.float64)
    for i in range(7):
        words = book[: i + 1].clone().requires_grad_()
        mixed = (query[0, 0, i].detach() @ words.mT).softmax(-1) @ value[0, 0, : i + 1].detach()
        (grad,) = torch.autograd.grad((mixer.proj(mixed) * weight[i]).sum(), words)
        for code in (0, 1):
            here = codes[0, 0, : i + 1] == code
            expected[: i + 1][here] += grad[here].sum(0) / max(1, int(here.sum()))
    assert keys.grad is not None
    torch.testing.assert_close(keys.grad[0, 0], expected)


def test_keys_of_a_code_share_the_straight_through_gradient() -> None:
    torch.manual_seed(1)
    mixer = create_mixer("vq_attention(head_dim=4, codes=3)", 4).double().eval()
    x = torch.randn(1, 9, 4, dtype=torch.float64)

    keys = mixer._keys(x).detach().requires_grad_()
    mixer._keys = lambda _: keys  # type: ignore[method-assign]
    weight = torch.randn(1, 9, 4, dtype=torch.float64)
    (mixer(x) * weight).sum().backward()
    # The published gradient: that of the quantised keys, handed to the keys one by one.
    codes = mixer.quantizer(keys)
    words = mixer.quantizer.words(codes).requires_grad_()
    query, value = mixer.qv(x).chunk(2, -1)
    mixed = (normalize_heads(query, 1) @ words.mT).softmax(-1) @ value.unsqueeze(1)
    (mixer.proj(mixed.squeeze(1)) * weight).sum().backward()
    assert keys.grad is not None and words.grad is not None
    for code in codes.unique():
        here = codes[0, 0] == code
        torch.testing.assert_close(keys.grad[0, 0, here].sum(0), words.grad[0, 0, here].sum(0))
        shared = keys.grad[0, 0, here]
        torch.testing.assert_close(shared, shared[:1].expand_as(shared))


def trained(mixer: VQAttention, *parts: Tensor, mask: Tensor | None = None) -> Tensor:
    """The codebook's sums after one step on these parts of a batch."""
    for x in parts:
        mixer.train()(x, mask=mask).sum().backward()
    after_step(mixer)
    return mixer.quantizer.c_sum


def test_the_codebook_moves_after_the_step_and_real_tokens_alone_count() -> None:
    torch.manual_seed(2)
    mixer = create_mixer("vq_attention(head_dim=4, codes=3, decay=0.5)", 8).double()
    assert isinstance(mixer, VQAttention)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    twin, parts, before = copy.deepcopy(mixer), copy.deepcopy(mixer), mixer.quantizer.c_sum.clone()
    masked = trained(mixer, x.masked_fill(~mask.unsqueeze(-1), torch.nan), mask=mask)
    assert not torch.equal(masked, before)
    torch.testing.assert_close(masked, trained(twin, x[:, :4]))
    torch.testing.assert_close(masked, trained(parts, x[:1, :4], x[1:, :4]))
    torch.testing.assert_close(mixer.quantizer.c_count.sum(1), torch.full((2,), 0.5 * 3 + 0.5 * 8, dtype=torch.float64))
    for still in (mixer.eval(), mixer.train()):
        with torch.no_grad():
            still(x)
        still.matrix(x).to_dense().sum().backward()  # looking, gradient and all
        assert torch.equal(trained(mixer), masked), "a step without tokens"


def test_a_step_that_overflowed_moves_nothing() -> None:
    torch.manual_seed(2)
    mixer = create_mixer("vq_attention(head_dim=4, codes=3)", 8)
    assert isinstance(mixer, VQAttention)
    before, x = mixer.quantizer.c_sum.clone(), torch.randn(1, 6, 8)
    assert torch.equal(trained(mixer, x * torch.inf), before)
    assert not torch.equal(trained(mixer, x), before)


@pytest.mark.parametrize(
    "spec", ["vq_attention(head_dim=4, codes=3)", "longvq(qk_dim=4, d_state=2, codes=3, window=2)"]
)
def test_training_compiles(spec: str) -> None:
    """One graph each way, the count of the codebook and the commitment loss included; twice before one step."""
    torch.manual_seed(2)
    eager = create_mixer(spec, 8).train()
    mixer, x = copy.deepcopy(eager), torch.randn(2, 2, 6, 8)
    torch._dynamo.reset()
    for one, run in ((eager, eager), (mixer, torch.compile(mixer, fullgraph=True, backend="aot_eager"))):
        losses = []
        for part in x:
            with auxiliary_losses(one) as auxiliary:
                losses.append(run(part).sum() + 1e3 * auxiliary())
        torch.stack(losses).sum().backward()
        after_step(one)
    for (name, value), other in zip(mixer.state_dict().items(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, msg=name)
    for (name, value), twin in zip(mixer.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(value.grad, twin.grad, msg=name)
    torch._dynamo.reset()


def test_commitment_pulls_keys_to_their_codewords() -> None:
    torch.manual_seed(3)
    mixer = create_mixer("vq_attention(head_dim=4, codes=3, commitment=0.5)", 8).double().train()
    assert isinstance(mixer, VQAttention)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    optimizer = torch.optim.SGD([mixer.key.weight], 0.04)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        with auxiliary_losses(mixer) as auxiliary:
            mixer(x)
            assert auxiliary() == 0.5 * mixer.distance(x) and auxiliary() == 0
            mixer.matrix(x)
            assert auxiliary() == 0, "looking"
            mixer(x)
            loss = auxiliary()
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


def test_commitment_is_a_mean_over_examples_whatever_their_padding() -> None:
    torch.manual_seed(3)
    mixer = create_mixer("vq_attention(head_dim=4, codes=3)", 8).double()
    assert isinstance(mixer, VQAttention)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    padded = x.masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
    whole = mixer.distance(padded, mask=mask)
    torch.testing.assert_close(whole, (mixer.distance(x[:1]) + mixer.distance(x[1:, :2])) / 2)
    whole.backward()
    assert padded.grad is not None and bool(padded.grad.isfinite().all())


def test_a_loss_without_gradient_is_refused() -> None:
    mixer = create_mixer("vq_attention(head_dim=4, codes=3)", 8).train()
    x = torch.randn(2, 6, 8, requires_grad=True)
    with auxiliary_losses(mixer) as auxiliary:
        checkpoint(mixer, x, use_reentrant=True)
        with pytest.raises(ValueError, match="with use_reentrant=False it has one"):
            auxiliary()
    mixer(x)  # outside nothing is kept
    assert mixer.quantizer.noted is None


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="codes must be a whole number"):
        create_mixer("vq_attention(codes=0)", 8)
    with pytest.raises(ValueError, match="decay must be a "):
        create_mixer("vq_attention(decay=2)", 8)
