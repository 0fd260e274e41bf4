"""MambaMixer's parts, and the wrappers they are made of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import matmix
from matmix.mixers.channels import Channels
from matmix.mixers.scan import Scan
from matmix.mixers.selective_channel import SelectiveChannel
from matmix.mixers.selective_token import SelectiveToken
from matmix.mixers.ss2d import SS2D
from matmix.ops.averages import Block, WeightedAverages
from matmix.ops.orders import ORDERS, scan_order
from matmix.testing import check_mixer


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_averages_have_as_many_scalars_as_the_paper_says(depth: int) -> None:
    averages = WeightedAverages(depth)
    assert sum(p.numel() for p in averages.parameters()) == depth * (2 * depth + 3)
    for level in range(1, depth + 1):
        sizes = [len(averages.level(name, level - 1)) for name in ("alpha", "beta", "theta", "gamma")]
        assert sizes == [level, level, level + 1, level]


def _blocks(mixers: list[Callable[[Tensor], Tensor]]) -> list[Block]:
    """Three token mixers and three channel mixers."""

    def block(token: Callable[[Tensor], Tensor], channel: Callable[[Tensor], Tensor]) -> Block:
        def run(x: Tensor, join: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
            y = token(x)
            return y, channel(join(y))

        return run

    return [block(token, channel) for token, channel in zip(mixers[:3], mixers[3:], strict=True)]


def test_averages_are_the_sums_of_the_paper() -> None:
    averages = WeightedAverages(3)
    torch.manual_seed(0)
    for parameter in averages.parameters():
        parameter.data.normal_()
    x = torch.randn(2, 5, 4)
    maps = [torch.randn(4, 4) / 2 for _ in range(6)]
    mixers = [lambda t, m=m: torch.tanh(t @ m) for m in maps]
    tokens, channels = averages(x, _blocks(mixers))
    alpha, beta, theta, gamma = (
        [averages.level(name, level) for level in range(3)] for name in ("alpha", "beta", "theta", "gamma")
    )
    y_t: dict[int, Tensor] = {0: x}
    y_c: dict[int, Tensor] = {0: x}
    for k in range(1, 4):
        into = sum(alpha[k - 1][i] * y_t[i] for i in range(k)) + sum(beta[k - 1][i] * y_c[i] for i in range(k))
        y_t[k] = mixers[k - 1](into)
        into = sum(theta[k - 1][i] * y_t[i] for i in range(k + 1)) + sum(gamma[k - 1][i] * y_c[i] for i in range(k))
        y_c[k] = mixers[k + 2](into)
        torch.testing.assert_close(tokens[k], y_t[k])
        torch.testing.assert_close(channels[k], y_c[k])


def test_averages_start_as_blocks_in_a_row_and_recover_vmamba() -> None:
    averages, x = WeightedAverages(3), torch.randn(2, 5, 4)
    mixers = [lambda t, k=k: torch.tanh((k + 1) * t) for k in range(6)]
    tokens, channels = averages(x, _blocks(mixers))
    chain = x
    for k in range(3):
        chain = mixers[k + 3](mixers[k](chain))
    torch.testing.assert_close(channels[-1], chain)
    tokens, _ = averages.vmamba_()(x, _blocks(mixers))
    chain = x
    for k in range(3):
        chain = mixers[k](chain)
    torch.testing.assert_close(tokens[-1], chain)


def test_selective_token_is_the_cross_scan_without_a_norm() -> None:
    torch.manual_seed(0)
    mixer, twin = SelectiveToken(8, (3, 4)), SS2D(8, (3, 4), out_norm=False)
    twin.load_state_dict(mixer.state_dict())
    x = torch.randn(2, 12, 8)
    torch.testing.assert_close(mixer(x), twin(x))


def test_selective_channel_mixes_the_channels_of_a_token_in_both_directions() -> None:
    torch.manual_seed(0)
    mixer = SelectiveChannel(6).double()
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda t: mixer(t)[0], x)[:, :, 0]  # (L, D, L, D)
    strength = jacobian.abs().amax((1, 3))
    assert bool((strength.diag() > 0).all()) and float((strength - strength.diag().diag()).max()) == 0
    assert bool((jacobian[2, :, 2].abs() > 0).all())
    # A token alone is a sequence of its channels.
    alone = mixer.mixer(x.reshape(4, 6, 1)).view(1, 4, 6)
    torch.testing.assert_close(mixer(x), alone)


def test_channels_holds_any_sequence_mixer() -> None:
    for spec, width in (("hydra(head_dim=4, d_state=4)", 4), ("mlp", 2), ("fnet", 3), ("s6", 1)):
        mixer, x = Channels(12, (3, 2), spec=spec, width=width), torch.randn(2, 6, 12)
        matrix, values, rest = mixer.project(x, mixer._context(x, None, None))
        torch.testing.assert_close(mixer.merge(matrix.to_dense() @ values, rest), mixer(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="width must be a divisor of dim=12, got 5"):
        Channels(12, None, spec="s6", width=5)


@pytest.mark.parametrize("spec", ["ssd(head_dim=4, d_state=4)", "hydra(head_dim=4, d_state=4)", "s6", "ponet(heads=2)"])
@pytest.mark.parametrize("orders", list(pairwise(ORDERS)))
def test_scan_is_the_mean_over_orders(spec: str, orders: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    mixer, grid = Scan(8, (3, 4), spec=spec, orders=orders).double(), (3, 4)
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for name in orders:
        index = scan_order(name, grid)
        expected[:, index] += mixer.parts[0](x[:, index]) / len(orders)
    torch.testing.assert_close(mixer(x), expected)


@pytest.mark.slow
def test_scan_holds_the_laws_around_several_mixers() -> None:
    laws = ["product", "gradients", "small", "mask_content", "mask_trim", "precision", "length"]
    for spec in ("hydra(head_dim=4, d_state=2, learnable_init_states=True)", "ponet(heads=2, segments=3)", "toeplitz"):
        check_mixer(
            lambda dim, grid, spec=spec: Scan(dim, grid, spec=spec, orders=("snake_rows", "columns")), laws=laws
        )


def test_scan_refuses_what_it_cannot_reorder() -> None:
    with pytest.raises(ValueError, match="a row a token"):
        matmix.create_mixer("scan(spec='selective_channel')", 8, (3, 4)).matrix(torch.randn(1, 12, 8))
    with pytest.raises(ValueError, match="orders must be some of"):
        Scan(8, None, orders=())
