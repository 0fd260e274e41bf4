"""The encoder around the mixers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from matmix.mixers import list_mixers, mixer_info
from sequence.encoder import Encoder, Patches
from sequence.layers.pooling import pool
from tests.building import check_building, check_dtypes


def encoder(mixer="attention(head_dim=4)", *, head="class", grid=(12,), seed=0, **options) -> Encoder:
    return Encoder(
        lambda: nn.Embedding(20, 8), mixer, dim=8, depth=2, grid=grid, head=head, outputs=5, seed=seed, **options
    )


TOKENS = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("head", "shape"), [("class", (3, 5)), ("token", (3, 12, 5)), ("forecast", (3, 5))])
def test_heads(head, shape):
    model = encoder(head=head)
    assert model(TOKENS).shape == shape
    with pytest.raises(ValueError, match="head must be"):
        encoder(head="mean")


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_a_padded_sequence_gives_what_the_real_one_gives(pool):
    model = encoder("attention(head_dim=4), identity", pool=pool).eval()
    short = TOKENS[:, :7]
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[:, :7] = True
    padded = torch.cat([short, torch.full((3, 5), 19)], 1)
    torch.testing.assert_close(model(padded, mask=mask), model(short))
    torch.testing.assert_close(model(padded.flip(1), mask=mask.flip(1)), model(short.flip(1)))


def test_last_is_the_last_real_token():
    x = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])
    assert torch.equal(pool(x, "last", mask), torch.stack([x[0, 1], x[1, 3]]))
    assert torch.equal(pool(x, "last", None), x[:, -1])
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    assert torch.equal(pool(x, "mean", nothing), torch.zeros(2, 3))


def test_position_makes_order_matter():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    bag, aware = encoder().eval(), encoder(position="learned").eval()
    torch.testing.assert_close(bag(TOKENS[:, order]), bag(TOKENS))
    assert (aware(TOKENS[:, order]) - aware(TOKENS)).abs().max() > 1e-3


def test_patches_are_row_by_row():
    patches = Patches(3, 8, 2)
    image = torch.randn(2, 3, 4, 6)
    tokens = patches(image)
    assert tokens.shape == (2, 6, 8)
    torch.testing.assert_close(tokens[:, 4], patches(image[:, :, 2:4, 2:4])[:, 0])


def test_hybrids_by_depth():
    model = encoder("identity, attention(head_dim=4)")
    assert [type(block.mixer).__name__ for block in model.blocks] == ["Identity", "Attention"]
    with pytest.raises(ValueError, match="does not divide depth=2"):
        encoder("identity, identity, attention")


def test_no_mlp():
    assert not any("mlp" in name for name in encoder(mlp_ratio=0).state_dict())
    assert encoder(mlp_ratio=3).blocks[0].mlp[0].out_features == 24


def outside(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if ".mixer." not in name}


@pytest.mark.parametrize("name", [name for name in list_mixers() if name != "heads"])
def test_arms_agree_outside_of_the_mixer(name):
    """Bit for bit, though the mixers draw different amounts of random numbers."""
    info = mixer_info(name)
    if 1 not in info.traits.dims:
        pytest.skip("images only")
    options = ", ".join(f"{k}={v!r}" for k, v in info.smallest.items() if k != "dim")
    mine = outside(encoder(f"{name}({options})", position="learned"))
    reference = outside(encoder("identity", position="learned"))
    assert mine.keys() == reference.keys()
    for key, value in reference.items():
        assert torch.equal(value, mine[key]), key


def test_blocks_and_seeds_differ_and_repeat():
    one, again, other = encoder(), encoder(), encoder(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    for part in ("embedding.weight", "head.weight", "blocks.0.mixer.qkv.weight", "blocks.0.mlp.0.weight"):
        assert not torch.equal(one.state_dict()[part], other.state_dict()[part])
    assert not torch.equal(one.blocks[0].mixer.qkv.weight, one.blocks[1].mixer.qkv.weight)
    alone = encoder("identity, attention(head_dim=4)")
    assert torch.equal(alone.blocks[1].mixer.qkv.weight, one.blocks[1].mixer.qkv.weight)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    encoder(position="learned")
    assert torch.equal(torch.rand(3), expected)


def test_is_built_and_saved_in_every_way(tmp_path: Path) -> None:
    def build() -> Encoder:
        return Encoder(
            lambda: nn.Linear(2, 8), "ssd(head_dim=4, d_state=2), attention", dim=8, depth=2, grid=(9,), head="class",
            outputs=3, position="learned",
        )  # fmt: skip

    x = torch.randn(2, 9, 2)
    check_building(build, x, tmp_path)
    check_dtypes(build, x)
