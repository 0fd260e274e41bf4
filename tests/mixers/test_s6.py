"""The Mamba-1 layer against the published one, and what the laws do not see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from matmix.mixers.s6 import S6
from matmix.published import load_published
from matmix.testing import check_mixer
from tests.fixtures import load_fixture


@pytest.mark.parametrize("name", ["mamba1_d32_L1", "mamba1_d32_L20"])
def test_published_layer(name: str) -> None:
    case = load_fixture(f"sequence/{name}")
    options = dict(case.config)
    mixer = S6(options.pop("d_model"), **options).double()
    load_published(mixer, case.state(), source="state-spaces/mamba")
    x = case.input()
    case.check(mixer(x))
    matrix, values, rest = mixer.project(x, mixer._context(x, None, None))
    case.check(mixer.merge(matrix.to_dense() @ values, rest))
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


@pytest.mark.parametrize("name", ["mamba_block", "mamba_block_rank2"])
def test_published_block_of_image_models(name: str) -> None:
    case = load_fixture(f"vision/{name}")
    options = {key: None if value == "auto" else value for key, value in case.config.items()}
    mixer = S6(options.pop("d_model"), **options).double()
    load_published(mixer, case.state(), source="state-spaces/mamba")
    case.check(mixer(case.input()))


def test_laws_hold_with_other_options() -> None:
    laws = ["product", "gradients", "small", "mask_content", "mask_trim", "recurrent", "causal", "precision"]
    options: dict[str, Any] = {"bias": True, "conv_bias": False, "dt_rank": 3, "d_state": 2, "d_conv": 2, "chunk": 3}
    check_mixer(lambda dim, grid: S6(dim, grid, **options), dim=8, laws=laws)


def test_any_chunk_gives_the_same_outputs() -> None:
    mixer, x = S6(8, d_state=5).double(), torch.randn(2, 33, 8, dtype=torch.float64)
    expected = mixer(x)
    for chunk in (1, 4, 32, 64):
        mixer.chunk = chunk
        torch.testing.assert_close(mixer(x), expected, rtol=1e-11, atol=1e-11)


def test_published_initialisation() -> None:
    mixer = S6(48)
    assert mixer.dt_proj.weight.shape == (96, 3)
    torch.testing.assert_close(mixer.A_log.detach().exp()[7], torch.arange(1.0, 17.0))
    step = torch.nn.functional.softplus(mixer.dt_proj.bias.detach())
    assert float(step.min()) >= 1e-3 * 0.999 and float(step.max()) <= 0.1 * 1.001


def test_errors_name_the_argument_and_the_value() -> None:
    with pytest.raises(ValueError, match="dt_rank must be a whole number"):
        S6(32, dt_rank=0)
