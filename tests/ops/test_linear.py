"""The fused linear layer: the same numbers, and only where nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from matmix.ops.layers import StarReLU
from matmix.ops.linear import linear, runs_only


def star() -> StarReLU:
    act = StarReLU()
    nn.init.constant_(act.scale, -0.7)
    nn.init.constant_(act.bias, 0.3)
    return act


@pytest.mark.parametrize(
    "act", [nn.Identity(), nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), star(), nn.Tanh(), nn.ReLU(inplace=True)]
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [32, 160])
@pytest.mark.parametrize("shape", [(2, 40, 80), (6400,), (1,), (0,)])
def test_equals_the_modules(act: nn.Module, bias: bool, inputs: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, 64, bias=bias)
    x = torch.randn(*shape, inputs)
    kept = x.clone()
    expected = act(layer(x))
    with torch.no_grad():
        torch.testing.assert_close(linear(layer, x, act), expected, rtol=1e-5, atol=1e-5)
        strided = torch.randn(6400, 2 * inputs)[:, ::2]
        torch.testing.assert_close(linear(layer, strided, act), act(layer(strided)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x, kept)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each run of the fused kernel."""
    from matmix.ops import linear as module

    seen: list[int] = []
    kernel = module._FUSED

    def counted(*args: Any) -> Tensor:
        seen.append(1)
        return kernel(*args)

    if kernel is not None:
        monkeypatch.setattr(module, "_FUSED", counted)
    return seen


def test_runs_where_nobody_looks_on_and_nowhere_else(calls: list[int]) -> None:
    layer, act, x = nn.Linear(32, 64), star(), torch.randn(6400, 32)
    linear(layer, x, act)
    with torch.no_grad():
        assert runs_only(x) and not runs_only(x.double()) and not runs_only(nn.Parameter(x))
        linear(layer.double(), x.double(), act)
        layer.float()
        linear(layer, x[:4], act)  # too little to pay for the call
        with FlopCounterMode(display=False) as counter:
            linear(layer, x, act)
        assert counter.get_total_flops() == 2 * 6400 * 32 * 64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(layer, x).dtype == torch.bfloat16
        torch.vmap(lambda rows: linear(layer, rows, act))(x.unflatten(0, (4, 1600)).repeat(1, 4, 1))
        torch.func.jvp(lambda rows: linear(layer, rows, act), (x,), (torch.ones_like(x),))
        torch.compile(lambda rows: linear(layer, rows, act), backend="aot_eager", fullgraph=True)(x)
        handle = layer.register_forward_hook(lambda *_: None)
        linear(layer, x, act)
        handle.remove()
        nn.utils.parametrizations.weight_norm(layer)
        linear(layer, x, act)
    assert not calls


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch is built without oneDNN")
def test_runs_at_all(calls: list[int]) -> None:
    with torch.no_grad():
        linear(nn.Linear(32, 64), torch.randn(6400, 32), star())
    assert calls


def test_gradients_are_those_of_the_modules() -> None:
    layer, act = nn.Linear(3, 5).double(), star().double()
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: linear(layer, x, act), (x,))
    torch.testing.assert_close(act(x), act.scale * x.relu().square() + act.bias)
