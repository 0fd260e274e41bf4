"""Every foreign model: its matrices are those that ran, and replacements run, restore, are saved and applied."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from matmix import surgery
from matmix.inspect import matrices, record
from matmix.matrices import Convolution, Softmax
from tests.surgery.models import ATTENTION, CASES, swin

NAMES = pytest.mark.parametrize("name", CASES)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    now = model.state_dict()
    assert list(now) == list(before)
    assert all(torch.equal(now[name], before[name]) for name in before)


@NAMES
def test_sites_are_found(name):
    case = CASES[name]
    assert tuple(site.name for site in surgery.find(case.model())) == case.sites
    told = surgery.find(case.model(), example=case.input())
    for site in told:
        assert site.calls == 1 and site.length and not site.causal and site.padded is False, site
        assert site.prefix == case.prefix
    assert all(name in str(told) for name in case.sites)


@NAMES
@pytest.mark.parametrize("training", [False, True])
def test_matrices_are_those_that_ran(name, training):
    case = CASES[name]
    model, x = case.model(torch.float64).train(training), case.input(torch.float64)
    before = state(model)
    with torch.no_grad():
        expected = model(x)
        model.load_state_dict(before)
        with record(model) as found:
            torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
    assert tuple(found) == case.sites
    assert all(isinstance(m, Softmax) for m in found.values()) == (name in ATTENTION)
    assert isinstance(found[case.sites[0]], Convolution) == (name in ("convnext", "caformer"))
    assert all("forward" not in module.__dict__ for module in model.modules())


@NAMES
def test_modules_are_replaced_and_come_back(name, tmp_path):
    case = CASES[name]
    model, x = case.model(), case.input()
    before, expected = state(model), model(x)
    calls = []
    for site in case.sites[:2]:  # hooks that hang on a site stay there
        model.get_submodule(site).register_forward_hook(lambda module, args, out: calls.append(type(module).__name__))
    report = surgery.replace(model, {case.sites[0]: "hydra(expand=1)", case.sites[1]: "dense"}, example=x)
    calls.clear()
    assert model(x).shape == expected.shape and not torch.equal(model(x), expected)
    assert calls == ["Replacement"] * 4
    left = model.state_dict()
    others = [key for key in before if not key.startswith(case.sites[:2])]
    assert all(torch.equal(left[key], before[key]) for key in others)
    assert all(key in others or key.startswith(case.sites[:2]) for key in left)

    model.train()(x).square().sum().backward()
    parts = [model.get_submodule(site) for site in case.sites[:2]]
    assert all(p.grad is not None and p.grad.any() for part in parts for p in part.parameters())
    model.eval()

    surgery.save(report, tmp_path)
    twin = case.model()
    again = surgery.apply(twin, tmp_path)
    assert torch.equal(twin(x), model(x))
    same_state(twin, state(model))
    again.restore()
    report.restore()
    same_state(model, before)
    same_state(twin, before)
    assert torch.equal(model(x), expected) and torch.equal(twin(x), expected)


@pytest.mark.parametrize("name", [*ATTENTION, "caformer"])
def test_the_matrix_softmax_is_the_untouched_model(name):
    case = CASES[name]
    for dtype, close in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model, x = case.model(dtype), case.input(dtype)
        expected, before = model(x), state(model)
        report = surgery.replace(model, "softmax", where="self_attention", level="matrix")
        torch.testing.assert_close(model(x), expected, rtol=close, atol=close)
        same_state(model, before)
        report.restore()
        assert torch.equal(model(x), expected)


SPECS = (
    "dense", "toeplitz", "low_rank(4)", "low_rank(data_dependent=True)", "monarch", "linear", "cauchy",
    "quasiseparable", "quasiseparable(order=2)", "identity", "zero", "uniform", "random",
)  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_the_matrix_alone_is_replaced(spec, tmp_path):
    case = CASES["deit"]
    model, x = case.model(torch.float64), case.input(torch.float64)
    before, expected, classes = state(model), model(x), [type(m) for m in model.modules()]
    # The first block: of the last one only the row of the class token counts.
    report = surgery.replace(model, spec, level="matrix", where="blocks.0.attn")
    after = state(model)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not torch.equal(model(x), expected)
    with record(model) as found:
        changed = model(x)
    assert not isinstance(found["blocks.0.attn"], Softmax) and isinstance(found["blocks.1.attn"], Softmax)
    changed.square().sum().backward()
    new = [p for key, p in model.named_parameters() if key not in before]
    assert all(p.grad is not None and p.grad.any() for p in new)
    surgery.save(report, tmp_path)
    twin = case.model(torch.float64)
    surgery.apply(twin, tmp_path)
    torch.testing.assert_close(twin(x), model(x), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x), rtol=0, atol=0)
    report.restore()
    same_state(model, before)
    assert torch.equal(model(x), expected) and [type(m) for m in model.modules()] == classes


def test_shifted_windows_keep_their_softmax_alone():
    """What a shift brings into one window is kept apart by a mask of pairs."""
    model, x = swin((2,)).double().eval(), CASES["swin"].input(torch.float64)
    expected = model(x)
    plain, shifted = (site.name for site in surgery.find(model))
    report = surgery.replace(model, "softmax", level="matrix")
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    report.restore()
    for spec, level in (("linear", "matrix"), ("toeplitz", "matrix"), ("sep_conv", "module")):
        report = surgery.replace(model, spec, plain, level=level)
        assert model(x).shape == expected.shape and not torch.allclose(model(x), expected)
        report.restore()
        report = surgery.replace(model, spec, shifted, level=level)
        with pytest.raises(ValueError, match=rf"{shifted}: .*pairs of tokens"):
            model(x)
        report.restore()
    assert torch.equal(model(x), expected)
    with pytest.raises(ValueError, match=rf"{shifted}: cannot be replaced at level='module': in the example mask"):
        surgery.replace(model, "sep_conv", example=x)


def test_what_no_adapter_knows_is_listed_with_the_reason():
    import timm

    model = timm.create_model("davit_tiny", depths=(1,), embed_dims=(8,), num_heads=(1,), num_classes=2)
    channel = next(site for site in surgery.find(model) if site.module_class == "ChannelAttention")
    assert "no adapter knows" in channel.why_not("module") and "no adapter knows" in channel.why_not("matrix")
    with pytest.raises(ValueError, match=f"{channel.name}: cannot be replaced at level='module': no adapter knows"):
        surgery.replace(model, "identity", where=channel)
    assert all(site.name != channel.name for site in surgery.find(model, "depthwise_conv"))
    window = next(site for site in surgery.find(model) if site.module_class == "WindowAttention")
    assert window.grid == (7, 7) and not window.refused


class Named(nn.Module):
    """A module with layers of these names and a call that nobody knows."""

    def __init__(self, *names: str, **attributes: int) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(4, 4))
        self.__dict__.update(attributes)

    def forward(self, x: torch.Tensor, feat_size: int) -> torch.Tensor:
        return x


def test_what_looks_like_a_mixer_is_listed_whatever_its_layers_are_called():
    """By appearances, and not in silence: DeBERTa's, Bloom's, MPT's, LeViT's, XCiT's names and others."""
    lists = [
        ("query_proj", "key_proj", "value_proj"), ("q_lin", "k_lin", "v_lin"), ("q", "kv"), ("qk", "v"), ("Wqkv",),
        ("query_key_value", "dense"), ("to_q", "to_k", "to_v"), ("wq", "wk", "wv"),
        ("linear_q", "linear_k", "linear_v"), ("receptance", "key", "value"), ("qkv_proj",),
    ]  # fmt: skip
    for names in lists:
        (site,) = surgery.find(nn.ModuleDict({"mix": Named(*names)}))
        assert (site.name, site.adapter, site.kind, site.dim) == ("mix", "unknown", "self_attention", 4), names
        assert "no adapter knows what it does with its call (x, feat_size)" in site.why_not("matrix")
    models = {"joint": Named("in_proj", num_heads=2), "cell": nn.LSTM(4, 4), "mlp_tokens": nn.Linear(4, 4)}
    kinds = [(site.name, site.kind, site.heads) for site in surgery.find(nn.ModuleDict(models))]
    assert kinds == [("joint", "self_attention", 2), ("cell", "mixer", None), ("mlp_tokens", "mixer", None)]
    holds = Named("q", "k", "v")
    holds.pe = nn.Conv1d(4, 4, 3, padding=1, groups=4)  # known, and replaceable, in what is not
    assert [site.name for site in surgery.find(nn.ModuleDict({"mix": holds}))] == ["mix", "mix.pe"]
    others = {"container": nn.ModuleDict({"q": nn.Linear(4, 4), "k": nn.Linear(4, 4), "v": nn.Linear(4, 4)})}
    assert not surgery.find(nn.ModuleDict({**others, "two": Named("key", "value"), "mlp": Named("in_proj", "out")}))


def test_a_replaced_model_is_recorded_too():
    case = CASES["vit"]
    model, x = case.model(torch.float64), case.input(torch.float64)
    surgery.replace(model, "ssd", where="blocks.0.attn")
    expected = model(x)
    with record(model) as found:
        torch.testing.assert_close(model(x), expected)
    assert tuple(found) == case.sites and not isinstance(found["blocks.0.attn"], Softmax)
    assert tuple(matrices(model, x)) == case.sites
