"""Ablations: what is multiplied by instead, what stays, every way out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from matmix import create_mixer, surgery
from matmix.inspect import matrices, record
from matmix.mixers.heads import Heads
from matmix.surgery.ablate import HOW
from tests.surgery.models import CASES, vit

OURS = {
    "attention": ("attention(head_dim=4)", 12),
    "causal": ("attention(head_dim=4, causal=True)", 12),
    "hydra": ("hydra(expand=1, head_dim=4)", 12),
    "shorter way": ("pooling", 12),
    "hybrid": ('heads("attention(head_dim=3)", "hydra(expand=1, head_dim=3)")', 12),
}


class Around(nn.Module):
    """Something of ours with a residual around it."""

    def __init__(self, spec: str, dim: int, length: int) -> None:
        super().__init__()
        self.mixer = create_mixer(spec, dim, (length,))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + self.mixer(x, mask=mask)


def models() -> list:
    ours = [
        pytest.param(lambda s=spec, d=dim: (Around(s, d, 6), torch.randn(3, 6, d)), id=name)
        for name, (spec, dim) in OURS.items()
    ]
    replaced = [
        pytest.param(lambda level=level, spec=spec: _replaced(level, spec), id=f"{level} {spec}")
        for level, spec in (("module", "ssd"), ("matrix", "linear"), ("matrix", "dense"))
    ]
    foreign = [
        pytest.param(lambda name=name: (CASES[name].model(), CASES[name].input()), id=name)
        for name in ("vit", "beit", "caformer", "poolformer")
    ]
    return ours + replaced + foreign


def _replaced(level: str, spec: str) -> tuple[nn.Module, Tensor]:
    model = CASES["vit"].model()
    surgery.replace(model, spec, level=level)
    return model, CASES["vit"].input()


@pytest.mark.parametrize("make", models())
def test_what_is_shown_ran_and_all_comes_back(make) -> None:
    torch.manual_seed(0)
    model, x = make()
    model = model.double().eval()
    x = x.double()
    names = [site.name for site in surgery.find(model)]
    before, plain = model(x), {name: m.to_dense() for name, m in matrices(model, x).items()}
    places = [(module, dict(module.__dict__)) for module in model.modules()]
    for how in HOW:
        batches = [x] if how == "mean" else None
        with surgery.ablate(model, names[0], how, batches=batches) as sites:
            assert [site.name for site in sites] == names[:1]
            out = model(x)
            with record(model) as shown:
                over = model(x)
            assert torch.allclose(out, over, rtol=1e-12), how  # other sites take their matrices' way in a recording
            made = {name: m.to_dense() for name, m in shown.items()}
            assert list(made) == list(plain)
            first = plain[names[0]]
            if how == "shuffle_rows":
                _is_shuffled(made[names[0]], first)
            else:
                assert torch.allclose(made[names[0]], _expected(how, first), atol=1e-9), how
            loss = model(x.requires_grad_()).square().sum()
            (grad,) = torch.autograd.grad(loss, x)
            assert bool(grad.isfinite().all()), how
        assert torch.equal(model(x), before), how
    assert all(module.__dict__.keys() == was.keys() for module, was in places)


def _expected(how: str, entries: Tensor) -> Tensor:
    """By the entries: what each ablation is."""
    length = entries.shape[-1]
    if how == "zero":
        return torch.zeros_like(entries)
    if how == "diagonal":
        return entries * torch.eye(length, dtype=entries.dtype)
    if how == "mean":
        return entries.mean(0, keepdim=True)
    seen = torch.ones(length, length, dtype=entries.dtype)
    seen = seen.tril() if bool((entries.triu(1) == 0).all()) and length > 1 else seen
    return (seen / seen.sum(-1, keepdim=True)).expand_as(entries)


def _is_shuffled(made: Tensor, entries: Tensor) -> None:
    """Every row of every matrix stands somewhere, one order for all, and not all where they stood."""
    apart = torch.cdist(made.expand_as(entries).double(), entries.double(), compute_mode="donot_use_mm_for_euclid_dist")
    order = apart[0, 0].argmin(-1)
    assert sorted(order.tolist()) != order.tolist() and torch.allclose(made, entries[:, :, order], atol=1e-9)


def test_padding_has_no_influence() -> None:
    model = Around("attention(head_dim=4)", 12, 6).double().eval()
    x = torch.randn(3, 6, 12, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1]]).bool()
    other = x.masked_fill(~mask.unsqueeze(-1), 7.0)
    for how in HOW:
        with surgery.ablate(model, "mixer", how, batches=[x] if how == "mean" else None):
            first, second = (model(t, mask)[mask] for t in (x, other))
            assert torch.equal(first, second), how
            if how == "shuffle_rows":  # the order is of the real tokens alone
                rows = model.mixer.matrix(x, mask=mask).to_dense()[1, 0, :3]
                assert bool((rows.sum(-1) - 1).abs().max() < 1e-9)


def test_layers_that_torch_fuses_and_masks_of_pairs() -> None:
    """In eval mode torch goes around the attention of an encoder layer; a causal mask stays one under ``uniform``."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    later = nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    hidden[0, 3:] = True
    other = x.masked_fill(hidden.unsqueeze(-1), 7.0)
    with torch.no_grad():
        plain = model(x)
        for how in ("zero", "diagonal", "shuffle_rows", "uniform"):
            with surgery.ablate(model, "all", how):
                assert not torch.allclose(model(x), plain), how
                first, second = (model(t, src_key_padding_mask=hidden)[~hidden] for t in (x, other))
                assert torch.equal(first, second), how
        with surgery.ablate(model, "0.self_attn", "uniform"), record(model) as found:
            model(x, mask=later)
        assert torch.equal(model(x), plain)
    triangle = torch.ones(5, 5, dtype=x.dtype).tril()
    made = found["layers.0.self_attn"].to_dense()
    assert torch.allclose(made, (triangle / triangle.sum(-1, keepdim=True)).expand_as(made))


def test_each_part_of_a_hybrid_alone() -> None:
    model = Around(OURS["hybrid"][0], 12, 6).eval()
    x, hybrid = torch.randn(3, 6, 12), model.mixer
    assert isinstance(hybrid, Heads)
    before = hybrid(x)
    for part, share in ((0, slice(0, 6)), (1, slice(6, 12))):
        with surgery.ablate(model, f"parts.{part}", "zero") as sites:
            assert [site.name for site in sites] == [f"mixer.parts.{part}"]
            after = hybrid(x)
        with surgery.ablate(model, f"mixer.parts.{part}", "zero"), record(model) as found:
            model(x)
        changed = (after != before).any(0).any(0)
        assert bool(changed[share].all()) and int(changed.sum()) == 6
        assert int((found["mixer"].to_dense() == 0).all(-1).all(-1).all(0).sum()) == 2  # heads of the part
    report = surgery.replace(inner := CASES["vit"].model(), 'heads("attention(head_dim=4)", "ssd(head_dim=4)")')
    with surgery.ablate(inner, "*.parts.1", "zero") as sites:
        assert [site.name for site in sites] == [f"blocks.{n}.attn.mixer.parts.1" for n in (0, 1)]
    report.restore()


def test_ablations_nest_and_an_exception_restores() -> None:
    model, x = CASES["vit"].model(), CASES["vit"].input()
    before = model(x)
    with record(model) as outside, surgery.ablate(model, "0.attn", "uniform"):
        with surgery.ablate(model, "all", "diagonal"):
            model(x)
        model(x)
    first = outside["blocks.0.attn"].to_dense()
    length = first.shape[-1]
    assert torch.allclose(first, torch.eye(length).expand_as(first) / length)
    assert torch.allclose(outside["blocks.0.attn#2"].to_dense(), torch.full_like(first, 1 / length))
    with pytest.raises(KeyError), surgery.ablate(model, "all", "zero"):
        raise KeyError
    assert torch.equal(model(x), before)


def test_one_order_a_seed() -> None:
    model, x = CASES["vit"].model(), CASES["vit"].input()
    state = torch.get_rng_state()

    def run(seed: int) -> Tensor:
        with surgery.ablate(model, "all", "shuffle_rows", seed=seed):
            return model(x)

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_refused() -> None:
    model, x = CASES["vit"].model(), CASES["vit"].input()
    with pytest.raises(ValueError, match=r"how must be one of 'zero', 'diagonal'.*got 'zeros'.*zero"):
        surgery.ablate(model, "all", "zeros").__enter__()
    with pytest.raises(ValueError, match="batches"):
        surgery.ablate(model, "all", "mean").__enter__()
    with pytest.raises(ValueError, match="batches"):
        surgery.ablate(model, "all", "zero", batches=[x]).__enter__()
    with pytest.raises(ValueError, match=r"where='atn' matches no site.*attn"):
        surgery.ablate(model, "atn", "zero").__enter__()
    causal = Around("ssd(head_dim=4)", 12, 6).eval()
    with surgery.ablate(causal, "mixer", "zero"), pytest.raises(RuntimeError, match="mixer is ablated"):
        causal.mixer.prefill(torch.randn(3, 6, 12))
    causal.mixer.prefill(torch.randn(3, 6, 12))
    longer = vit(img_size=(32, 64)).eval()
    with (
        surgery.ablate(longer, "0.attn", "mean", batches=[torch.randn(2, 3, 32, 64)]),
        pytest.raises(ValueError, match=r"blocks.0.attn: its mean matrix is \(3, 9, 9\), that of the call \(3, 5, 5\)"),
    ):
        longer.blocks[0].attn(torch.randn(2, 5, 24))
