"""RaftMLP's token mixing."""

import pytest
import torch
from torch.nn import functional as F

from matmix import load_published
from matmix.mixers.raft import Raft
from matmix.testing import check_mixer
from tests.fixtures import load_fixture

SOURCE = "okojoalg/raft-mlp"


@pytest.mark.parametrize("name", ["6x6_r1", "6x6_r2", "built6_at_8x5_r2"])
def test_published_block(name: str) -> None:
    """The token mixing, then the channel mixing of the published block."""
    fixture = load_fixture(f"vision/mixer_raft_block_{name}")
    config, state = fixture.config, fixture.state()
    state = {key.removeprefix("block."): value for key, value in state.items()}
    built = (config["built_height"], config["built_width"]) if "built_height" in config else None
    grid = (config["height"], config["width"])
    mixer = Raft(config["dim"], grid, raft=config["raft_size"], built=built).double()
    load_published(mixer, {k: v for k, v in state.items() if k[0] in "13"}, source=SOURCE)
    x = mixer(fixture.input())
    hidden = F.layer_norm(x, (8,), state["5.norm.weight"], state["5.norm.bias"])
    hidden = F.gelu(F.linear(hidden, state["5.fn.0.weight"], state["5.fn.0.bias"]))
    atol = fixture.data["tolerance"]["float64"]["atol"]
    fixture.check(x + F.linear(hidden, state["5.fn.3.weight"], state["5.fn.3.bias"]), atol=atol)


def test_published_direction() -> None:
    """One direction alone; its published layout is (bundle, column) x (channel of the bundle, row)."""
    fixture = load_fixture("vision/mixer_raft_vertical_6x6_r2")
    mixer = load_published(Raft(8, (6, 6), axis="vertical").double(), fixture.state(), source=SOURCE)
    x = fixture.input().view(2, 4, 6, 2, 6)  # B, bundle, column, channel of the bundle, row
    tokens = x.permute(0, 4, 2, 3, 1).reshape(2, 36, 8)
    out = mixer(tokens).view(2, 6, 6, 2, 4).permute(0, 4, 2, 3, 1)
    fixture.check(out.reshape(2, 24, 12), atol=fixture.data["tolerance"]["float64"]["atol"])


def test_matrix_reaches_the_whole_image() -> None:
    mixer = Raft(6, (3, 4), raft=2).double()
    matrix = mixer.matrix(torch.randn(2, 12, 6, dtype=torch.float64))
    assert tuple(matrix.shape) == (2, 3, 24, 25)
    reach = matrix.to_dense()[..., :-1].abs().view(2, 3, 12, 2, 12, 2).amax((0, 1, 3, 5))
    assert bool((reach > 0).all())
    only = Raft(6, (3, 4), axis="horizontal").double().matrix(torch.randn(1, 12, 6, dtype=torch.float64))
    reach = only.to_dense()[..., :-1].abs().view(3, 12, 2, 12, 2).amax((0, 2, 4))
    same_row = torch.arange(12).unsqueeze(1) // 4 == torch.arange(12) // 4
    assert torch.equal(reach > 0, same_row)


def test_one_row_is_a_sequence() -> None:
    """A sequence is mixed as the single row of an image."""
    sequence, row = Raft(4, (7,)).double(), Raft(4, (1, 7), axis="horizontal").double()
    row.load_state_dict(sequence.state_dict())
    x = torch.randn(2, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(sequence(x), row(x))


@pytest.mark.parametrize("axis", ["both", "vertical", "horizontal"])
def test_laws_of_a_built_grid(axis: str) -> None:
    def build(dim: int, grid: tuple[int, ...]) -> Raft:
        return Raft(dim, grid, axis=axis, mlp_ratio=1.0, built=(4, 3)[-len(grid) :])

    check_mixer(build, laws=["product", "length", "mask_content", "gradients", "small", "keeps", "dims"])


def test_resize_keeps_a_constant() -> None:
    """On a constant image the perceptrons give what they gave, at any size."""
    mixer = Raft(4, (4, 6)).double()
    x = torch.randn(4, dtype=torch.float64)
    with torch.no_grad():
        for part in (mixer.vertical, mixer.horizontal):
            for tensor, axis in ((part.fc2.weight, 0), (part.fc2.bias, 0)):  # the same at every place
                places = tensor.unflatten(axis, (2, -1))
                tensor.copy_(places.mean(1, keepdim=True).expand_as(places).reshape(tensor.shape))
    before = mixer(x.expand(1, 24, 4))[0, 0]
    after = mixer.resize_((9, 11))(x.expand(1, 99, 4))[0]
    torch.testing.assert_close(after, before.expand(99, 4), rtol=0.02, atol=0.01)


def test_refuses() -> None:
    for options, message in (
        ({"raft": 3}, "raft must be a positive divisor of dim=8, got 3"),
        ({"axis": "diagonal"}, "axis must be one of 'both'"),
        ({"mlp_ratio": 0.1}, "mlp_ratio must leave"),
        ({"built": (5,)}, "built must have as many axes"),
    ):
        with pytest.raises(ValueError, match=message):
            Raft(8, (3, 5), **options)
    with pytest.raises(ValueError, match="grid must be"):
        Raft(8, (15,), axis="vertical")


def test_drop_path_leaves_directions_out() -> None:
    """In training a sample goes without a direction by chance, and the matrix says so; in evaluation none does."""
    mixer = Raft(4, (3, 5), axis="horizontal", drop_path=0.5).double()
    x = torch.randn(16, 15, 4, dtype=torch.float64)
    whole = mixer.eval()(x) - x
    torch.manual_seed(0)
    branch = mixer.train()(x) - x
    torch.manual_seed(0)
    matrix = mixer.matrix(x)
    kept = branch.flatten(1).abs().amax(1) > 0
    assert 0 < int(kept.sum()) < 16
    torch.testing.assert_close(branch[kept], 2 * whole[kept])
    assert bool((branch[~kept] == 0).all())
    identity = torch.eye(30, 31, dtype=torch.float64)
    torch.testing.assert_close(matrix.to_dense()[~kept], identity.expand(int((~kept).sum()), 2, -1, -1))
    values = torch.nn.functional.pad(x.reshape(16, 30, 2), (0, 0, 0, 1), value=1.0).mT.unsqueeze(-1)
    product = (matrix.to_dense() @ values).squeeze(-1).mT.reshape(16, 15, 4)
    torch.testing.assert_close(product, x + branch)
    with pytest.raises(ValueError, match="drop_path must be"):
        Raft(4, (3, 5), drop_path=1.0)
