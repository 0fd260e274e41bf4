"""S5 against its definition: the recurrence of arXiv 2208.04933, token by token in complex numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from matmix import create_mixer
from matmix.mixers.s4d import spectrum


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("act", ["gelu", "identity"])
def test_the_recurrence(causal: bool, act: str) -> None:
    torch.manual_seed(0)
    mixer = create_mixer(f"s5(d_state=8, copies=2, causal={causal}, act={act!r})", 6).double()
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    rate = torch.complex(-mixer.log_A_real.exp(), mixer.A_imag)
    pole = (mixer.log_dt.exp() * rate).exp()
    inputs, outputs = mixer.B.weight, mixer.C.weight.unflatten(1, (-1, 2, 4))
    entering = x.to(torch.complex128) @ torch.complex(*inputs.split(4)).mT

    def states(tokens: torch.Tensor) -> torch.Tensor:
        state, found = torch.zeros(2, 4, dtype=torch.complex128), []
        for token in tokens.unbind(1):
            state = pole * state + (pole - 1) / rate * token
            found.append(state)
        return torch.stack(found, 1)

    y = mixer.D * x
    ways = [states(entering)] if causal else [states(entering), states(entering.flip(1)).flip(1)]
    for way, found in enumerate(ways):
        y = y + found.real @ outputs[:, way, 0].mT + found.imag @ outputs[:, way, 1].mT
    gate = torch.sigmoid(mixer.gate(F.gelu(y)))
    torch.testing.assert_close(mixer(x), (F.gelu(y) if act == "gelu" else y) * gate)


def test_it_begins_at_copies_of_a_spectrum() -> None:
    mixer = create_mixer('s5(d_state=24, copies=3, C_init="one")', 64)
    eigenvalues = spectrum("legs", 8)[0].repeat(3).to(torch.complex64)
    torch.testing.assert_close(torch.complex(-mixer.log_A_real.exp(), mixer.A_imag), eigenvalues)
    # y is twice the real part of C s: each part of C has the mean square 1/2, its weights twice the size
    assert float(mixer.C.weight.detach().square().mean()) == pytest.approx(2, rel=0.1)
    for scale, mean_square in (("row", 4 / 24), ("matrix", 4 / 24 / 64)):
        weight = create_mixer(f's5(d_state=24, C_init="{scale}")', 64).C.weight
        assert float(weight.detach().square().mean()) == pytest.approx(mean_square, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("d_state=6, copies=2", "d_state must be a multiple of 2 copies = 4, got 6"),
        ("act='relu'", "act must be one of 'gelu', 'identity', got 'relu'"),
        ("C_init='zero'", "C_init must be one of 'row', 'matrix', 'one', got 'zero'"),
        ("dt_min=0.2", "need 0 < dt_min <= dt_max, got 0.2, 0.1"),
    ],
)
def test_what_it_refuses(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mixer(f"s5({options})", 4)


def test_both_ways_is_no_recurrence() -> None:
    with pytest.raises(NotImplementedError, match="a token also sees later ones"):
        create_mixer("s5(causal=False)", 4).init_state(1)
