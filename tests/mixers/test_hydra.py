"""The Hydra layer against the published one, and what the laws do not see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from matmix.mixers.hydra import Hydra
from matmix.published import load_published
from matmix.testing import check_mixer
from tests.fixtures import Fixture, load_fixture


def published(name: str) -> tuple[Fixture, Hydra]:
    case = load_fixture(f"sequence/hydra_layer_{name}")
    options = case.options()
    options.pop("use_mem_eff_path")
    mixer = Hydra(**options).double()
    load_published(mixer, case.state(), source="goombalab/hydra")
    return case, mixer


NAMES = ["d32_L1", "d32_L16", "d32_L2_nocbias", "d32_dtlimit_L9", "d32_expand1_L31", "d48_init_states_bias_L20"]


@pytest.mark.parametrize("name", NAMES)
def test_published_layer(name: str) -> None:
    case, mixer = published(name)
    x = case.input()
    case.check(mixer(x))
    matrix, values, rest = mixer.project(x, mixer._context(x, None, None))
    case.check(mixer.merge(matrix.to_dense() @ values, rest))


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 2, "head_dim": 4, "bias": True, "conv_bias": False},
        {"learnable_init_states": True, "head_dim": 4, "bias": True},
        {"expand": 1, "head_dim": 2, "chunk": 2, "dt_limit": (0.01, 1.0)},
    ],
    ids=lambda options: ",".join(options),
)
def test_laws_hold_for_every_option(options: dict[str, Any]) -> None:
    laws = ["product", "gradients", "small", "mask_content", "mask_trim", "causal", "precision"]
    check_mixer(lambda dim, grid: Hydra(dim, grid, d_state=4, d_conv=5, **options), dim=8, laws=laws)


def test_parameters_of_the_published_size() -> None:
    with torch.device("meta"):
        mixer = Hydra(768)
    assert sum(p.numel() for p in mixer.parameters()) == 3_825_224
    assert mixer.heads == 24


def test_any_chunk_gives_the_same_outputs() -> None:
    x = torch.randn(2, 33, 8, dtype=torch.float64)
    mixer = Hydra(8, head_dim=4, d_state=5).double()
    expected = mixer(x)
    for chunk in (1, 4, 32, 64):
        mixer.chunk = chunk
        torch.testing.assert_close(mixer(x), expected, rtol=1e-11, atol=1e-11)


def test_reversal_swaps_the_directions() -> None:
    """Weights of both ways exchanged and the filter turned round: the reversed sequence gives the reversed outputs."""
    mixer = Hydra(8, head_dim=4, d_state=3, d_conv=5).double()
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    expected = mixer(x)
    # Rows of in_proj: z 16 | x 16 | B, C forward 6 | B, C backward 6 | dt forward 4 | dt backward 4.
    order = torch.cat([torch.arange(a, b) for a, b in ((0, 32), (38, 44), (32, 38), (48, 52), (44, 48))])
    with torch.no_grad():
        mixer.in_proj.weight.copy_(mixer.in_proj.weight[order])
        channels = order[16:44] - 16
        mixer.conv1d.weight.copy_(mixer.conv1d.weight[channels].flip(2))
        mixer.conv1d.bias.copy_(mixer.conv1d.bias[channels])
    torch.testing.assert_close(mixer(x.flip(1)).flip(1), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 24}, r"head_dim must divide expand \* dim = 64 .*, got 24"),
        ({"head_dim": 16, "groups": 3}, r"groups must divide the 4 heads .*, got 3"),
        ({"d_conv": 4}, r"d_conv must be odd.*, got 4"),
    ],
)
def test_errors_name_the_argument_and_the_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hydra(32, **options)
