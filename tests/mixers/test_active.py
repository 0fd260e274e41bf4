"""The active token mixer of ActiveMLP."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix import load_published
from matmix.matrices import Interpolation
from matmix.mixers.active import Active
from tests.fixtures import load_fixture

SOURCE = "microsoft/TokenMixers"


class Given(nn.Module):
    """Offsets from somewhere else."""

    def __init__(self, offsets: Tensor) -> None:
        super().__init__()
        self.offsets = offsets

    def forward(self, x: Tensor) -> Tensor:
        return self.offsets


def test_published_layer() -> None:
    fixture = load_fixture("vision/atm_layer")
    x, offset = fixture.input("input"), fixture.input("offset")
    mixer = Active(12, (5, 7)).double()
    mixer.offset_layer = Given(offset.flatten(2).mT)
    load_published(mixer, fixture.state(), source=SOURCE)
    out = mixer(x.flatten(1, 2)).view(x.shape)
    fixture.check(out, atol=fixture.data["tolerance"]["float64_atol"], rtol=0)


def test_published_block() -> None:
    """The block that makes its offsets, from its input before the norm."""
    fixture = load_fixture("vision/active_block")
    state, x = fixture.state(), fixture.input().flatten(1, 2)
    ours = {name.removeprefix("atm."): v for name, v in state.items() if name.startswith(("atm.", "offset_layer."))}
    mixer = Active(8, (6, 5), share=fixture.config["share_dim"]).double()
    load_published(mixer, ours, source=SOURCE)
    offsets = mixer.offset_layer(x)
    mixer.offset_layer = Given(offsets)
    y = x + mixer(F.layer_norm(x, (8,), state["norm1.weight"], state["norm1.bias"]))
    hidden = F.layer_norm(y, (8,), state["norm2.weight"], state["norm2.bias"])
    hidden = F.gelu(F.linear(hidden, state["mlp.fc1.weight"], state["mlp.fc1.bias"]))
    y = y + F.linear(hidden, state["mlp.fc2.weight"], state["mlp.fc2.bias"])
    whole = offsets.repeat_interleave(4, -1).mT  # (B, 2C, L)
    fixture.check(torch.cat((y.flatten(), whole.flatten())), atol=fixture.data["tolerance"]["float64_atol"], rtol=0)


def test_whole_offsets_are_shifts() -> None:
    """With whole offsets each branch is a shift along its axis, with zeros from beyond the grid."""
    mixer = Active(4, (3, 5)).double()
    x = torch.randn(1, 15, 4, dtype=torch.float64)
    steps = torch.tensor([2.0] * 4 + [-1.0] * 4, dtype=torch.float64)
    mixer.offset_layer = Given(steps.expand(1, 15, 8))
    read = mixer.matrix(x).to_dense() @ x.mT.unsqueeze(-1)
    columns, rows, same = read.view(1, 4, 3, 3, 5).unbind(2)
    image = x.mT.view(1, 4, 3, 5)
    torch.testing.assert_close(columns, F.pad(image, (0, 2))[..., 2:])
    torch.testing.assert_close(rows, F.pad(image, (0, 0, 1, 0))[..., :3, :])
    torch.testing.assert_close(same, image)


def test_refuses() -> None:
    with pytest.raises(ValueError, match="share must be a positive divisor of dim=8, got 3"):
        Active(8, (3, 5), share=3)
    with pytest.raises(ValueError, match="ratio must leave"):
        Active(8, (3, 5), mlp_ratio=0.1)
    with pytest.raises(ValueError, match="grid of 2 axes"):
        Active(8, (3, 5)).resize_((15,))


def test_offsets_that_lead_nowhere() -> None:
    """Far beyond the grid there are zeros; what is no number stays none, in its own row alone."""
    offset = torch.zeros(1, 2, 12)
    offset[0, 0, 3], offset[0, 1, 5], offset[0, 1, 6] = torch.nan, torch.inf, -1e30
    values = torch.randn(1, 2, 12, 1)
    expected = values.clone()
    expected[0, 0, 3], expected[0, 1, 5], expected[0, 1, 6] = torch.nan, 0, 0
    for axis in (0, 1):
        torch.testing.assert_close(Interpolation(offset, (3, 4), axis).matmul(values), expected, equal_nan=True)
