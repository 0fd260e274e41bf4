"""The Mamba-2 layer against the published one, and what the laws do not see: options, states, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from matmix import create_mixer
from matmix.mixers.ssd import SSD
from matmix.published import load_published
from matmix.testing import check_mixer
from tests.fixtures import Fixture, load_fixture


def published(name: str) -> tuple[Fixture, SSD]:
    case = load_fixture(f"sequence/{name}")
    mixer = SSD(**case.options(), norm_groups=1 if "simple" in name else None).double()
    load_published(mixer, case.state(), source="state-spaces/mamba")
    return case, mixer


NAMES = ["mamba2_d32_L19", "mamba2_d32_norms_off_Dhdim_L10", "mamba2simple_d32_L24", "mamba2simple_d32_g2_init_L21"]


@pytest.mark.parametrize("name", NAMES)
def test_published_layer(name: str) -> None:
    case, mixer = published(name)
    x = case.input()
    case.check(mixer(x))
    out, state = mixer.prefill(x)
    case.check(out)
    if "outputs" in case.data:
        case.check(state.window, "conv_state")
        case.check(state.memory, "ssm_state")
    state, tokens = mixer.init_state(x.shape[0]), []
    for token in x.unbind(1):
        y, state = mixer.step(token, state)
        tokens.append(y)
    case.check(torch.stack(tokens, 1))


@pytest.mark.parametrize("name", NAMES)
def test_the_shown_matrix_is_all_that_mixes(name: str) -> None:
    case, mixer = published(name)
    x = case.input()
    matrix, values, rest = mixer.project(x, mixer._context(x, None, None))
    case.check(mixer.merge(matrix.to_dense() @ values, rest))


@pytest.mark.parametrize(
    "options",
    [
        {"d_ssm": 8, "head_dim": 4},
        {"groups": 2, "head_dim": 4, "bias": True, "conv_bias": False},
        {"D_per_channel": True, "head_dim": 8, "norm_before_gate": True},
        {"learnable_init_states": True, "head_dim": 4, "bias": True},
        {"out_norm": False, "head_dim": 4, "dt_limit": (0.01, 1.0)},
        {"expand": 1, "head_dim": 2, "chunk": 2},
    ],
    ids=lambda options: ",".join(options),
)
def test_laws_hold_for_every_option(options: dict[str, Any]) -> None:
    laws = ["product", "gradients", "small", "mask_content", "mask_trim", "recurrent", "causal", "precision"]
    check_mixer(lambda dim, grid: SSD(dim, grid, d_state=4, d_conv=3, **options), dim=8, laws=laws)


def test_channels_beside_the_mixing_are_a_gated_linear_unit() -> None:
    """d_ssm: the projections are z0, x0, z, x B C, dt in the published order, and silu(z0) x0 goes first."""
    mixer = SSD(8, d_ssm=4, head_dim=2, d_state=3, out_norm=False).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        mixer.out_proj.weight[:, 12:] = 0
    gate, beside = mixer.in_proj(x)[..., :24].chunk(2, -1)
    expected = (torch.nn.functional.silu(gate) * beside) @ mixer.out_proj.weight[:, :12].mT
    torch.testing.assert_close(mixer(x), expected)


def test_any_chunk_gives_the_same_outputs() -> None:
    x: Tensor = torch.randn(2, 33, 8, dtype=torch.float64)
    torch.manual_seed(0)
    mixer = SSD(8, head_dim=4, d_state=5).double()
    expected = mixer(x)
    for chunk in (1, 4, 32, 64):
        mixer.chunk = chunk
        torch.testing.assert_close(mixer(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("dim", "width"), [(8, 16), (48, 48), (64, 64), (192, 64), (37, 37), (1, 2)])
def test_the_default_head_width_fits_any_dim(dim: int, width: int) -> None:
    mixer = SSD(dim)
    assert mixer.head_dim == width
    assert mixer(torch.randn(1, 3, dim)).shape == (1, 3, dim)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 24}, r"head_dim must divide expand \* dim = 64 .*, got 24"),
        ({"head_dim": 16, "groups": 3}, r"groups must divide the 4 heads .*, got 3"),
        ({"d_ssm": 65}, r"d_ssm must be 1 to expand \* dim = 64, got 65"),
        ({"dt_limit": (1.0, 0.5)}, r"dt_limit must be 0 <= low <= high"),
        ({"dt_min": 0.5}, r"0 < dt_min <= dt_max"),
        ({"A_init_range": (2.0, 1.0)}, r"A_init_range must be 0 < low <= high"),
    ],
)
def test_errors_name_the_argument_and_the_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SSD(32, **options)


def test_published_initialisation() -> None:
    mixer = create_mixer("ssd(d_state=8)", dim=256)
    assert isinstance(mixer, SSD)
    step = torch.nn.functional.softplus(mixer.dt_bias.detach())
    assert float(step.min()) >= 1e-3 * 0.999 and float(step.max()) <= 0.1 * 1.001
    rate = mixer.A_log.detach().exp()
    assert float(rate.min()) >= 0.999 and float(rate.max()) <= 16.001
    assert mixer.no_weight_decay() == {"A_log", "D", "dt_bias"}
