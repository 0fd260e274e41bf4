"""Gated norms and short convolutions against the published functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.ops.layers import GatedRMSNorm, ShortConv
from tests.fixtures import load_fixture


@pytest.mark.parametrize(
    ("key", "options"),
    [("output", {}), ("after", {"gate_first": True}), ("grouped", {"gate_first": True, "groups": 4})],
)
def test_gated_rms_norm_as_published(key: str, options: dict) -> None:
    case = load_fixture("sequence/rmsnorm_gated_before_and_after")
    norm = GatedRMSNorm(32, eps=case.config["eps"], **options).double()
    norm.load_state_dict({"weight": case.state()["norm.weight"]})
    case.check(norm(case.input("x"), case.input("z")), key)


def test_gated_rms_norm_needs_groups_that_divide() -> None:
    with pytest.raises(ValueError, match="groups must be a positive divisor of 32 channels, got 5"):
        GatedRMSNorm(32, groups=5)


def test_causal_convolution_as_published() -> None:
    case = load_fixture("sequence/causal_conv1d")
    conv = ShortConv(6, 4).double()
    conv.load_state_dict({"weight": case.input("weight").unsqueeze(1), "bias": case.input("bias")})
    x = case.input("x").mT
    case.check(F.silu(conv(x)).mT, "zero_state")
    # From a state: token by token, the window before the first token being the given inputs.
    window = F.pad(case.input("initial_states"), (1, 0))
    tokens = []
    for token in x.unbind(1):
        y, window = conv.step(token, window)
        tokens.append(F.silu(y))
    case.check(torch.stack(tokens, 2))
    case.check(window[..., 1:], "final_states")


@pytest.mark.parametrize(("size", "causal"), [(1, True), (4, True), (1, False), (7, False)])
@pytest.mark.parametrize("length", [1, 2, 3, 11])
def test_short_convolution_is_the_sum_of_its_taps(size: int, causal: bool, length: int) -> None:
    conv = ShortConv(5, size, causal).double()
    x = torch.randn(2, length, 5, dtype=torch.float64)
    reach = size - 1 if causal else size // 2
    expected = conv.bias.expand(2, length, 5).clone()
    for i in range(length):
        for k in range(size):
            if 0 <= i + k - reach < length:
                expected[:, i] += conv.weight[:, 0, k] * x[:, i + k - reach]
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize(("size", "causal"), [(4, True), (7, False)])
def test_short_convolution_with_silu(size: int, causal: bool) -> None:
    conv = ShortConv(5, size, causal)
    x = torch.randn(2, 3, 11, 5, requires_grad=True)

    def together(x: Tensor) -> Tensor:
        return conv(x, silu=True)

    def apart(x: Tensor) -> Tensor:
        return F.silu(conv(x))

    leaves = (*conv.parameters(), x)
    compiled = torch.compile(together, fullgraph=True, backend="aot_eager")
    expected = apart(x[0])
    wanted = torch.autograd.grad(expected.sin().sum(), leaves)
    for run in (together, compiled):
        torch.testing.assert_close(run(x[0]), expected)
        found = torch.autograd.grad(run(x[0]).sin().sum(), leaves)
        torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(together(x[0]), expected)
    x = x.detach()
    torch.testing.assert_close(torch.func.vmap(together)(x), torch.func.vmap(apart)(x))
    found, wanted = (torch.func.jvp(run, (x[0],), (x[1],)) for run in (together, apart))
    torch.testing.assert_close(found, wanted)


def test_window_holds_the_last_inputs() -> None:
    conv, x = ShortConv(3, 4), torch.randn(2, 6, 3)
    torch.testing.assert_close(conv.absorb(x, None, None)[1], x[:, 2:].mT)
    mixed, window = conv.absorb(x[:, :2], None, None)
    torch.testing.assert_close(window, torch.cat((torch.zeros(2, 3, 2), x[:, :2].mT), 2))
    rest, _ = conv.absorb(x[:, 2:], None, window)
    torch.testing.assert_close(torch.cat((mixed, rest), 1), conv(x))


def test_a_centred_filter_has_an_odd_number_of_taps() -> None:
    with pytest.raises(ValueError, match="centred filter must be positive and odd, got 4"):
        ShortConv(3, 4, causal=False)
