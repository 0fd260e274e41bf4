"""Mamba-3 against the published layer, and what the laws do not see."""

from __future__ import annotations

import pytest
import torch

from matmix.mixers.mamba3 import Mamba3
from matmix.published import load_published
from matmix.testing import check_mixer
from tests.fixtures import load_fixture


@pytest.mark.parametrize("name", ["mamba3_d16_L13", "mamba3_d16_g2_norm_rope1_L9"])
def test_published_layer(name: str) -> None:
    case = load_fixture(f"sequence/{name}")
    mixer = Mamba3(**case.options()).double()
    load_published(mixer, case.state(), source="state-spaces/mamba")
    assert sum(p.numel() for p in mixer.parameters()) == case.data["num_params"]
    x = case.input()
    case.check(mixer(x))
    matrix, values, rest = mixer.project(x, mixer._context(x, None, None))
    case.check(mixer.merge(matrix.to_dense() @ values, rest))
    out, _ = mixer.prefill(x)
    case.check(out)
    state, tokens = mixer.init_state(x.shape[0]), []
    for token in x.unbind(1):
        y, state = mixer.step(token, state)
        tokens.append(y)
    case.check(torch.stack(tokens, 1))


def test_laws_hold_with_other_options() -> None:
    laws = ["product", "gradients", "small", "mask_content", "mask_trim", "recurrent", "causal", "precision", "aligned"]
    options = {"out_norm": True, "rope_fraction": 1.0, "groups": 2, "d_state": 6, "head_dim": 2, "chunk": 3}
    check_mixer(lambda dim, grid: Mamba3(dim, grid, **options), dim=8, laws=laws)


def test_angles_add_up_over_4096_tokens() -> None:
    torch.manual_seed(0)
    mixer = Mamba3(8, d_state=4, head_dim=4)
    x = torch.randn(1, 4096, 8)
    exact = mixer.double()(x.double())
    assert float((mixer.float()(x) - exact).detach().abs().max()) <= 1e-4 * float(exact.detach().abs().max())


def test_errors_name_the_argument_and_the_value() -> None:
    with pytest.raises(ValueError, match=r"rope_fraction must be 0.5 or 1.0, got 0.7"):
        Mamba3(8, rope_fraction=0.7)
    with pytest.raises(ValueError, match=r"d_state must be even, .* got d_state=3"):
        Mamba3(8, d_state=3)
