"""torch.nn's attention under surgery, alone and in its encoders and decoders; what their short cuts go around."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

from matmix import surgery
from matmix.adapters import Replacement, discover
from matmix.inspect import matrices, record
from matmix.matrices import Softmax

B, L, S, D, H = 3, 6, 4, 8, 2
INF = float("inf")


def seeded(model: nn.Module) -> nn.Module:
    """With weights and biases that are all random: torch begins with biases of zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.4)
    return model


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def encoder(dtype: torch.dtype = torch.float64, layers: int = 2, **options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(D, H, 12, **{"dropout": 0.0, "batch_first": True, **options})
    return seeded(nn.TransformerEncoder(layer, layers, enable_nested_tensor=not options)).to(dtype).eval()  # type: ignore[return-value]


def transformer(**options: Any) -> nn.Transformer:
    options = {"dropout": 0.0, "batch_first": True, **options}
    return seeded(nn.Transformer(D, H, 1, 2, 12, **options)).double().eval()  # type: ignore[return-value]


def padding(side: str) -> Tensor:
    """``(B, L)`` bool, True = padding, of no, one and two tokens."""
    hidden = torch.arange(L) >= torch.tensor([[L], [L - 1], [L - 2]])
    return hidden if side == "right" else hidden.flip(1)


def causal(kind: str = "float") -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64) if kind == "float" else triu()


def triu() -> Tensor:
    return torch.ones(L, L, dtype=torch.bool).triu(1)


def attributes(model: nn.Module) -> list[dict[str, Any]]:
    """All plain attributes of all modules."""
    return [{k: v for k, v in module.__dict__.items() if not k.startswith("_")} for module in model.modules()]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def runs(monkeypatch):
    """Counts forwards of replacements without a hook: a hook by itself turns torch's short cuts off."""
    calls: list[str] = []
    forward = Replacement.forward

    def counted(self, *args, **kwargs):
        calls.append(self.site.name)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Replacement, "forward", counted)
    return calls


# ------------------------------------------------------------------ what torch would go around


@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}, {"batch_first": False}])
@pytest.mark.parametrize("level", ["module", "matrix"])
def test_the_fused_layer_does_not_go_around_it(level, options, runs):
    model, x = encoder(layers=2, **options), draw(B, L, D)
    before, expected = attributes(model), model(x).detach()
    with torch.no_grad():
        fused = model(x)
    report = surgery.replace(
        model, "hydra(expand=1)" if level == "module" else "linear", "layers.1.self_attn", level=level
    )
    plain = model(x).detach()
    assert not torch.allclose(plain, expected)
    runs.clear()
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain, rtol=1e-10, atol=1e-10)
    assert runs == ["layers.1.self_attn"] * (level == "module")
    report.restore()
    assert attributes(model) == before
    with torch.no_grad():
        assert torch.equal(model(x), fused)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("layers", [[0], [1], [0, 1]])
@pytest.mark.parametrize("level", ["module", "matrix"])
def test_no_nested_tensor_arrives(level, layers, runs):
    model, x, hidden = encoder(), draw(B, L, D), padding("right")
    before = attributes(model)
    with torch.no_grad():
        nested = model(x, src_key_padding_mask=hidden)
    assert bool((nested[hidden] == 0).all())  # else this torch makes none, and the test tests nothing
    report = surgery.replace(model, "ssd" if level == "module" else "softmax", level=level, layers=layers)
    with torch.no_grad():
        quick = model(x, src_key_padding_mask=hidden)
    torch.testing.assert_close(quick, model(x, src_key_padding_mask=hidden).detach(), rtol=1e-10, atol=1e-10)
    if level == "matrix":
        torch.testing.assert_close(quick[~hidden], nested[~hidden], rtol=1e-10, atol=1e-10)
    assert model.use_nested_tensor is False
    report.restore()
    assert attributes(model) == before and model.use_nested_tensor is True
    with torch.no_grad():
        assert torch.equal(model(x, src_key_padding_mask=hidden), nested)


def test_settings_stay_for_what_stays():
    model = encoder()
    first = surgery.replace(model, "ssd", layers=[0])
    second = surgery.replace(model, "linear", layers=[1], level="matrix")
    first.restore()
    assert model.use_nested_tensor is False and model.layers[1].activation_relu_or_gelu == 0
    assert model.layers[0].activation_relu_or_gelu == 1
    second.restore()
    assert model.use_nested_tensor is True and model.layers[1].activation_relu_or_gelu == 1


# ------------------------------------------------------------------ the old matrix

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "length_first": {"batch_first": False},
    "no_bias": {"bias": False},
    "more_keys": {"add_bias_kv": True, "add_zero_attn": True},
    "zero_key": {"add_zero_attn": True},
    "widths": {"kdim": 5, "vdim": 7},
}


def module(form: str, **options: Any) -> nn.MultiheadAttention:
    """One attention module, float64."""
    options = {"batch_first": True, **FORMS[form], **options}
    return seeded(nn.MultiheadAttention(D, H, **options)).double()  # type: ignore[return-value]


def masks(kind: str, rows: int, columns: int) -> dict[str, Any]:
    """Masks that leave every query a key, but for "left": there the causal first rows are blind."""
    hidden = torch.arange(columns) >= torch.tensor([[columns], [columns - 1], [columns - 2]])
    later = torch.ones(rows, columns, dtype=torch.bool).triu(1)
    some = draw(B * H, rows, columns, seed=5) > 0.4
    some[..., 0] = False
    return {
        "none": {},
        "padding": {"key_padding_mask": hidden},
        "float_padding": {"key_padding_mask": torch.zeros(B, columns, dtype=torch.float64).masked_fill(hidden, -INF)},
        "added_padding": {"key_padding_mask": draw(B, columns, seed=3)},
        "causal": {"attn_mask": later},
        "hinted": {"attn_mask": later, "is_causal": True},
        "causal_padding": {"attn_mask": later, "key_padding_mask": hidden, "is_causal": True},
        "left": {"attn_mask": later, "key_padding_mask": hidden.flip(1)},
        "added": {"attn_mask": draw(rows, columns, seed=4)},
        "added_both": {"attn_mask": draw(B * H, rows, columns, seed=4), "key_padding_mask": draw(B, columns, seed=3)},
        "pairs": {"attn_mask": some},
        "one": {"attn_mask": torch.ones(rows, columns, dtype=torch.float64)},  # 1.0 masks nothing
    }[kind]


KINDS = (
    "none", "padding", "float_padding", "added_padding", "causal", "hinted", "causal_padding", "left", "added",
    "added_both", "pairs", "one",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("across", [False, True], ids=["self", "across"])
def test_matrices_are_those_that_ran(form, across):
    attention, columns = module(form), S if across else L
    if form == "widths" and not across:
        return  # keys of another width are of another sequence
    query, key, value = draw(B, L, D), draw(B, S, attention.kdim, seed=1), draw(B, S, attention.vdim, seed=2)
    if not attention.batch_first:
        query, key, value = (t.transpose(0, 1) for t in (query, key, value))
    key, value = (key, value) if across else (query, query)
    (one,) = discover(nn.ModuleDict({"attn": attention}))
    for kind in KINDS:
        given = masks(kind, L, columns)
        for flags in ({}, {"average_attn_weights": False}, {"need_weights": False}):
            expected, weights = attention(query, key, value, **given, **flags)
            told = one.attended((query, key, value), {**given, **flags})
            out, again = told.answer(told.matrix)
            assert isinstance(told.matrix, Softmax)
            seen = ~expected.isnan()  # torch makes NaN of a row without a key where it returns weights, we zeros
            assert seen.all() or kind == "left"
            torch.testing.assert_close(out[seen], expected[seen], rtol=1e-10, atol=1e-10, msg=f"{kind} {flags}")
            dense = told.matrix.to_dense() @ told.values
            torch.testing.assert_close(dense, told.matrix.matmul(told.values), rtol=1e-10, atol=1e-10)
            assert (weights is None) == (again is None)
            if weights is not None:
                torch.testing.assert_close(again[~weights.isnan()], weights[~weights.isnan()], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [False, True])
def test_recorded_models_run_as_they_did(training):
    model = encoder().train(training)
    x, hidden = draw(B, L, D), padding("right")
    expected = model(x, src_key_padding_mask=hidden, mask=causal())
    with record(model) as found:
        torch.testing.assert_close(model(x, src_key_padding_mask=hidden, mask=causal()), expected)
    matrix = found["layers.1.self_attn"].to_dense()
    assert list(found) == ["layers.0.self_attn", "layers.1.self_attn"]
    assert bool((matrix[..., triu()] == 0).all()) and bool((matrix.mT[hidden[:, None].expand(-1, H, -1)] == 0).all())
    both = transformer(batch_first=False).train(training)
    src, tgt = draw(S, B, D), draw(L, B, D, seed=1)
    expected = both(src, tgt, tgt_mask=causal())
    with record(both) as found, torch.no_grad():
        torch.testing.assert_close(both(src, tgt, tgt_mask=causal()), expected)
    assert {name: matrix.shape for name, matrix in found.items()} == {
        "encoder.layers.0.self_attn": (B, H, S, S),
        **{
            f"decoder.layers.{n}.{part}": (B, H, L, size)
            for n in (0, 1)
            for part, size in (("self_attn", L), ("multihead_attn", S))
        },
    }


def test_right_padding_is_seen_where_torch_would_nest():
    model, x, hidden = encoder(), draw(B, L, D), padding("right")
    found = matrices(model, x, src_key_padding_mask=hidden)
    assert all(matrix.shape == (B, H, L, L) and torch.equal(matrix.mask, ~hidden) for matrix in found.values())
    told = surgery.find(model, example={"src": x, "src_key_padding_mask": hidden})
    assert [(site.length, site.padded, site.causal) for site in told] == [(L, True, False)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [False, True])
def test_the_matrix_softmax_is_the_untouched_model(dtype, training):
    close = 1e-5 if dtype is torch.float32 else 1e-12
    model, x = encoder(dtype).train(training), draw(B, L, D, dtype=dtype)
    given = {"mask": causal().to(dtype), "src_key_padding_mask": padding("right")}
    expected, plain, before = model(x, **given), model(x), state(model)
    report = surgery.replace(model, "softmax", level="matrix")
    torch.testing.assert_close(model(x, **given), expected, rtol=close, atol=close)
    torch.testing.assert_close(model(x), plain, rtol=close, atol=close)
    assert [(k, v.tolist()) for k, v in state(model).items()] == [(k, v.tolist()) for k, v in before.items()]
    report.restore()
    assert torch.equal(model(x, **given), expected)

    both = transformer().to(dtype).train(training)
    src, tgt = draw(B, S, D, dtype=dtype), draw(B, L, D, dtype=dtype, seed=1)
    given = {"tgt_mask": triu(), "memory_key_padding_mask": torch.arange(S) >= torch.tensor([[S], [2], [3]])}
    expected = both(src, tgt, **given)
    report = surgery.replace(both, "softmax", level="matrix")
    torch.testing.assert_close(both(src, tgt, **given), expected, rtol=close, atol=close)
    report.restore()
    assert torch.equal(both(src, tgt, **given), expected)


def test_weights_that_are_made_are_those_that_ran():
    model, x = encoder(), draw(B, L, D)
    parametrize.register_parametrization(model.layers[0].self_attn, "in_proj_weight", nn.Tanh())
    prune.l1_unstructured(model.layers[1].self_attn, "in_proj_weight", 0.5)
    expected, classes = model(x), [type(part) for part in model.modules()]
    report = surgery.replace(model, "softmax", level="matrix")
    assert len(report.sites) == 2
    torch.testing.assert_close(model(x), expected)
    report.restore()
    assert torch.equal(model(x), expected) and [type(part) for part in model.modules()] == classes


@pytest.mark.parametrize("shared", ["attention", "layer"])
def test_a_shared_attention_stays_shared(shared):
    model, x = nn.ModuleList([encoder(layers=1), encoder(layers=1)]), draw(B, L, D)
    if shared == "layer":
        model[1].layers[0] = model[0].layers[0]
    else:
        model[1].layers[0].self_attn = model[0].layers[0].self_attn
    before = attributes(model)
    report = surgery.replace(model, "ssd")
    assert model[1].layers[0].self_attn is model[0].layers[0].self_attn
    for one in model:
        with torch.no_grad():
            quick = one(x, src_key_padding_mask=padding("right"))
        torch.testing.assert_close(quick, one(x, src_key_padding_mask=padding("right")).detach())
    report.restore()
    assert attributes(model) == before


def test_weights_are_returned_with_the_other_matrix():
    attention, x = nn.ModuleDict({"attn": module("plain")}), draw(B, L, D)
    surgery.replace(attention, "identity", level="matrix")
    out, weights = attention.attn(x, x, x)
    assert torch.equal(weights, torch.eye(L, dtype=torch.float64).expand(B, L, L))
    assert attention.attn(x, x, x, average_attn_weights=False)[1].shape == (B, H, L, L)
    again, none = attention.attn(x, x, x, need_weights=False)
    assert none is None and torch.equal(out, again)


def test_dropout_is_of_the_matrix():
    attention, x = nn.ModuleDict({"attn": module("plain", dropout=0.5)}), draw(B, L, D)
    surgery.replace(attention, "softmax", level="matrix")
    (one,) = discover(attention)
    plain = one.attended((x, x, x), {})
    out, weights = attention.train().attn(x, x, x, average_attn_weights=False)
    kept = weights != 0
    assert 0.3 < kept.double().mean() < 0.7
    torch.testing.assert_close(weights[kept], 2 * plain.matrix.to_dense()[kept])
    torch.testing.assert_close(out, plain.finish(weights @ plain.values)[0])
    torch.testing.assert_close(attention.eval().attn(x, x, x)[0], plain.answer(plain.matrix)[0])


# ------------------------------------------------------------------ a mixer in its place


def test_sites_say_what_they_are():
    sites = surgery.find(transformer())
    kinds = ["self_attention", *["self_attention", "cross_attention"] * 2]
    assert [site.kind for site in sites] == kinds
    assert all((site.heads, site.head_dim, site.causal, site.length) == (H, D // H, None, None) for site in sites)
    with pytest.raises(ValueError, match=r"multihead_attn: cannot be replaced at level='module': a mixer mixes one"):
        surgery.replace(transformer(), "hydra", "cross_attention")


def test_an_example_tells_what_a_site_is_called_with():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn, self.other = module("plain"), module("plain")

        def forward(self, x: Tensor, memory: Tensor, **options: Any) -> Tensor:
            return self.other(self.self_attn(x, x, x, **options)[0], memory, memory)[0]

    model, x, memory = Two(), draw(B, L, D), draw(B, S, D, seed=1)
    first, second = surgery.find(model, example=(x, memory))
    assert (second.kind, second.memory, first.kind, first.memory) == ("cross_attention", S, "self_attention", None)
    assert first.causal is False and second.why_not("module") and not first.why_not("module")
    first, _ = surgery.find(model, example={"x": x, "memory": memory, "attn_mask": triu()})
    assert first.causal is True
    example = {"x": x, "memory": memory, "attn_mask": masks("pairs", L, L)["attn_mask"]}
    first, _ = surgery.find(model, example=example)
    assert "in the example attn_mask (6, 6, 6) hides or weighs pairs" in first.why_not("module")
    with pytest.raises(ValueError, match="self_attn: cannot be replaced at level='module': in the example attn_mask"):
        surgery.replace(model, "hydra", "self_attn", example=example)
    with pytest.raises(ValueError, match="self_attn: the site is causal, 'hydra' is not"):
        surgery.replace(model, "hydra", "self_attn", example={"x": x, "memory": memory, "attn_mask": triu()})


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("spec", "dtype"), [("hydra(expand=1)", torch.float64), ("attention", torch.float32)])
def test_padding_has_no_influence(spec, dtype, side):
    model, x, hidden = encoder(dtype), draw(B, L, D, dtype=dtype), padding(side)
    surgery.replace(model, spec)
    other = torch.where(hidden[..., None], draw(B, L, D, dtype=dtype, seed=9), x)
    for training in (False, True):
        model.train(training)
        for mask in (hidden, torch.zeros(B, L, dtype=dtype).masked_fill(hidden, -INF)):
            with torch.no_grad():
                outs = [model(one, src_key_padding_mask=mask) for one in (x, other)]
            assert torch.equal(outs[0][~hidden], outs[1][~hidden])
            cut = x[2:, 2:] if side == "left" else x[2:, : L - 2]
            rest = outs[0][2:, 2:] if side == "left" else outs[0][2:, : L - 2]
            close = 1e-9 if dtype is torch.float64 else 1e-5
            torch.testing.assert_close(model(cut), rest, rtol=close, atol=close)


@pytest.mark.parametrize(
    ("spec", "level"), [("ssd", "module"), ("linear(causal=True)", "matrix"), ("softmax", "matrix")]
)
def test_causality_is_exact(spec, level):
    model = transformer()
    src, tgt = draw(B, S, D), draw(B, L, D, seed=1)
    surgery.replace(model, spec, "decoder.*.self_attn", level=level)
    other = tgt.clone()
    other[:, -1] += 1
    for training in (False, True):
        model.train(training)
        for given in ({}, {"tgt_is_causal": True}):
            outs = [model(src, one, tgt_mask=causal(), **given) for one in (tgt, other)]
            assert torch.equal(outs[0][:, :-1], outs[1][:, :-1]) and not torch.equal(outs[0][:, -1], outs[1][:, -1])


@pytest.mark.parametrize("spec", ["linear", "uniform", "zero", "cauchy", "low_rank(data_dependent=True)"])
def test_cross_attention_gets_other_matrices(spec, tmp_path):
    model, src, tgt = transformer(), draw(B, S, D), draw(B, L, D, seed=1)
    hidden = torch.arange(S) >= torch.tensor([[S], [2], [3]])
    before, expected = state(model), model(src, tgt)
    report = surgery.replace(model, spec, "multihead_attn", level="matrix")
    other = torch.where(hidden[..., None], draw(B, S, D, seed=9), src)
    given = {"memory_key_padding_mask": hidden, "src_key_padding_mask": hidden}
    out = model(src, tgt, **given)
    torch.testing.assert_close(model(other, tgt, **given), out, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(src, tgt), expected)
    surgery.save(report, tmp_path)
    twin = transformer()
    surgery.apply(twin, tmp_path)
    assert torch.equal(twin(src, tgt, **given), out)
    report.restore()
    assert torch.equal(model(src, tgt), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("form", ["more_keys", "zero_key"])
def test_keys_that_are_no_tokens_are_columns_of_the_matrix(form):
    """What can be other than square takes them, padding hides tokens alone; what is square, or causal, cannot."""
    model, x, hidden = nn.ModuleDict({"attn": module(form)}), draw(B, L, D), padding("right")
    expected, weights = model.attn(x, x, x, hidden)
    other = torch.where(hidden[..., None], draw(B, L, D, seed=9), x)
    for spec in ("softmax", "linear", "uniform", "zero", "cauchy", "low_rank(data_dependent=True)"):
        report = surgery.replace(model, spec, level="matrix")
        out, now = model.attn(x, x, x, hidden)
        again, _ = model.attn(x, other, other, hidden)
        torch.testing.assert_close(again, out, rtol=1e-12, atol=1e-12)
        assert now.shape == weights.shape and torch.allclose(out, expected) == (spec == "softmax")
        if spec == "uniform":  # the tokens that are real, and the others
            keys = (~hidden).sum(1) + weights.shape[2] - L
            torch.testing.assert_close(now[:, :, -1], (1 / keys.double())[:, None].expand(-1, L))
        report.restore()
        assert torch.equal(model.attn(x, x, x, hidden)[0], expected)
    for spec, why in (("toeplitz", "is square"), ("identity", "is square"), ("linear(causal=True)", "is causal by")):
        with pytest.raises(
            ValueError, match=rf"attn: '{spec[:6]}\w*' {why}.*, and add_.* adds keys that are no tokens"
        ):
            surgery.replace(model, spec, level="matrix")
    surgery.replace(model, "hydra(expand=1)")


def test_saved_applied_restored_bit_for_bit(tmp_path):
    model, src, tgt = transformer(batch_first=False), draw(S, B, D), draw(L, B, D, seed=1)
    given = {"tgt_mask": causal()}
    before, plain, expected = state(model), attributes(model), model(src, tgt, **given)
    example = {"src": src, "tgt": tgt, **given}
    spec = {"encoder.*": "dense", "decoder.*": "ssd"}
    report = surgery.replace(model, spec, "self_attention", example=example)
    out = model(src, tgt, **given)
    assert out.shape == expected.shape and not torch.allclose(out, expected)
    left = model.state_dict()
    assert all(torch.equal(left[name], before[name]) for name in before if ".self_attn." not in name)
    assert "self_attn" in str(report)
    surgery.save(report, tmp_path)
    twin = transformer(batch_first=False)
    surgery.apply(twin, tmp_path)
    assert torch.equal(twin(src, tgt, **given), out) and torch.equal(copy.deepcopy(model)(src, tgt, **given), out)
    report.restore()
    assert attributes(model) == plain and torch.equal(model(src, tgt, **given), expected)
    assert list(model.state_dict()) == list(before)


def test_gradients_reach_all_and_are_those_of_recomputation():
    model, x, hidden = encoder().train(), draw(B, L, D), padding("right")
    surgery.replace(model, "hydra(expand=1)", layers=[0])
    surgery.replace(model, "linear", layers=[1], level="matrix")
    model(x, src_key_padding_mask=hidden).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert len(expected) == len(list(model.parameters()))
    model.zero_grad()
    out = x
    for layer in model.layers:
        out = checkpoint(layer, out, src_key_padding_mask=hidden, use_reentrant=False)
    out.square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected)


def test_compiles_whole():  # of a mixer that is compiled elsewhere: what is compiled here is the call
    model, x, hidden = encoder(torch.float32), draw(B, L, D, dtype=torch.float32), padding("right")
    surgery.replace(model, "linear(causal=True)", layers=[1], level="matrix")
    surgery.replace(model, "identity", layers=[0])
    quick = torch.compile(model, fullgraph=True, backend="aot_eager")
    for given in ({"src_key_padding_mask": hidden}, {"mask": causal().float(), "is_causal": True}):
        torch.testing.assert_close(quick(x, **given), model(x, **given))
    added = draw(B, L, dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r"layers.0.self_attn: a floating key_padding_mask of a compiled call"):
        quick(x, src_key_padding_mask=added)


# ------------------------------------------------------------------ what is refused

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "pairs": (masks("pairs", L, L), r"attn_mask \(6, 6, 6\) hides or weighs pairs of tokens"),
    "added": (masks("added", L, L), r"attn_mask \(6, 6\) hides or weighs pairs of tokens"),
    "padding": (masks("added_padding", L, L), "key_padding_mask adds other numbers than 0 and -inf"),
    "causal": ({"attn_mask": triu()}, "the call demands causality, Hydra is not causal"),
    "hint": ({"is_causal": True}, "is_causal=True is a hint that attn_mask is the causal mask; attn_mask is None"),
    "int": ({"key_padding_mask": torch.zeros(B, L, dtype=torch.long)}, "key_padding_mask must be bool"),
    "shape": ({"attn_mask": torch.zeros(L, S)}, r"attn_mask must be \(6, 6\) or \(6, 6, 6\), got"),
    "batch": ({"key_padding_mask": torch.zeros(2, L)}, r"key_padding_mask must be \(3, 6\), got \(2, 6\)"),
    "unknown": ({"position_bias": 1}, "does not understand the argument 'position_bias'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_mixer_cannot_take_is_refused_by_name(name):
    given, message = REFUSED[name]
    model, x = nn.ModuleDict({"attn": module("plain")}), draw(B, L, D)
    surgery.replace(model, "hydra(expand=1)")
    with pytest.raises(ValueError, match=f"attn: .*{message}"):
        model.attn(x, x, x, **given)


def test_other_sequences_are_refused_by_name():
    model, x, memory = nn.ModuleDict({"attn": module("plain")}), draw(B, L, D), draw(B, S, D)
    surgery.replace(model, "hydra(expand=1)")
    with pytest.raises(ValueError, match="attn: the call brings another sequence to attend to"):
        model.attn(x, memory, memory)
    with pytest.raises(ValueError, match="attn: the call brings values of other tokens than keys"):
        model.attn(x + 1, x + 1, x)
    with pytest.raises(ValueError, match="attn: got a NestedTensor"):
        nested = torch.nested.nested_tensor([x[0], x[1, :3]])
        model.attn(nested, nested, nested)
    with pytest.raises(ValueError, match="query, key and value must be all 3-D or all 2-D"):
        model.attn(x, x[0], x[0])
    with pytest.raises(TypeError, match="attn: the call lacks value"):
        model.attn(x, x)
    out, weights = model.attn(x.clone(), x.clone(), x)  # the same tokens in other tensors
    assert weights is None and torch.equal(out, model.attn(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("first", [True, False])
def test_layouts(first):
    model = nn.ModuleDict({"attn": module("plain", batch_first=first)})
    x, hidden = draw(B, L, D), padding("right")
    surgery.replace(model, "hydra(expand=1)")
    given = x if first else x.transpose(0, 1)
    out = model.attn(given, given, given, hidden)[0]
    assert out.shape == given.shape
    batched = out if first else out.transpose(0, 1)
    alone = model.attn(x[2], x[2], x[2], hidden[2])[0]
    torch.testing.assert_close(alone, batched[2], rtol=1e-12, atol=1e-12)
    later = {"attn_mask": torch.zeros(L, L, dtype=torch.bool)}  # hides nothing
    assert torch.equal(model.attn(given, given, given, hidden, **later)[0], out)
    one = given[:, :1] if first else given[:1]
    model.attn(one, one, one, attn_mask=later["attn_mask"][:1, :1])  # of one token, nothing is causal
