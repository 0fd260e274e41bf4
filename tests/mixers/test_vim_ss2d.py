"""Vim's and VMamba's token mixers against the published ones, and what the laws do not see."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from matmix.mixers.ss2d import SS2D
from matmix.mixers.vim import Vim
from matmix.ops.orders import CROSS, ORDERS, scan_order
from matmix.published import load_published
from tests.fixtures import load_fixture


def test_published_vim() -> None:
    case = load_fixture("vision/vim_bimamba_v2")
    options = dict(case.config)
    assert options.pop("bimamba_type") == "v2"
    divide = options.pop("if_divide_out")
    mixer = Vim(options.pop("d_model"), divide=divide, **options).double()
    load_published(mixer, case.state(), source="hustvl/Vim")
    case.check(mixer(case.input()))
    matrix, values, rest = mixer.project(case.input(), mixer._context(case.input(), None, None))
    case.check(mixer.merge(matrix.to_dense() @ values, rest))


def test_published_ss2d() -> None:
    case = load_fixture("vision/vmamba_ss2d_v05_noz")
    config = case.config
    mixer = SS2D(
        config["d_model"],
        expand=config["ssm_ratio"],
        d_state=config["d_state"],
        dt_rank=config["dt_rank"],
        out_gate=config["gate"],
    ).double()
    load_published(mixer, case.state(), source="MzeroMiko/VMamba")
    image = case.input()
    batch, rows, columns, dim = image.shape
    out = mixer(image.flatten(1, 2), grid=(rows, columns))
    case.check(out.view(batch, rows, columns, dim))


def test_convolutions_of_channels_first_checkpoints_load() -> None:
    mixer = SS2D(8, d_state=1)
    state = {name: v[..., None, None] if name.endswith("proj.weight") else v for name, v in mixer.state_dict().items()}
    other = load_published(SS2D(8, d_state=1), state, source="MzeroMiko/VMamba")
    x = torch.randn(1, 6, 8)
    torch.testing.assert_close(other(x, grid=(2, 3)), mixer(x, grid=(2, 3)))


def test_published_scan_orders() -> None:
    case = load_fixture("vision/vmamba_cross_scan")
    image = case.input()
    tokens = image.flatten(2)
    scans = [tokens[..., scan_order(name, tuple(image.shape[2:]))] for name in CROSS]
    case.check(torch.stack(scans, 1))


@pytest.mark.parametrize("grid", [(1,), (7,), (3, 4), (4, 1)])
@pytest.mark.parametrize("name", ORDERS)
def test_orders_read_every_token_once(name: str, grid: tuple[int, ...]) -> None:
    index = scan_order(name, grid)
    rows, columns = grid if len(grid) == 2 else (1, *grid)
    assert sorted(index.tolist()) == list(range(rows * columns))
    if name.startswith("snake"):  # every step is to a neighbour
        steps = [(b // columns - a // columns, b % columns - a % columns) for a, b in pairwise(index)]
        assert all(abs(int(i)) + abs(int(j)) == 1 for i, j in steps)
    if name.endswith("_back"):
        assert index.tolist() == scan_order(name.removesuffix("_back"), grid).tolist()[::-1]


def test_errors_name_the_argument_and_the_value() -> None:
    with pytest.raises(ValueError, match=r"orders must be some of rows, .* got \('zigzag',\)"):
        SS2D(8, orders=("zigzag",))
    with pytest.raises(ValueError, match=r"d_conv must be odd, .* got 4"):
        SS2D(8, d_conv=4)
    with pytest.raises(ValueError, match="d_state must be a whole number"):
        Vim(8, d_state=0)
