"""ActiveMLP against published numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vision
from matmix import create_mixer, load_published
from matmix.inspect import matrices
from tests.fixtures import load_fixture
from tests.vision.checks import check_count, check_output, check_training
from vision.models.activemlp import ActiveBlock, ActiveMLP

SOURCE = "microsoft/TokenMixers"


def small(**options: Any) -> ActiveMLP:
    return ActiveMLP(**{"depths": (2, 2, 3, 2), "dims": (8, 16, 24, 32), "num_classes": 10, **options})


def test_tiny() -> None:
    check_output(load_fixture("vision/activemlp_tiny"), small(), SOURCE)


def test_block() -> None:
    """The published block gives its distances too, channel by channel."""
    fixture = load_fixture("vision/active_block")
    block = ActiveBlock(create_mixer("active(share=4)", 8, (6, 5)), 32, 0.0, makes=True).double()
    load_published(block, fixture.state(), source=SOURCE)
    x = fixture.input()
    assert block.offset_layer is not None
    offsets = block.offset_layer(x.flatten(1, 2))
    whole = offsets.repeat_interleave(4, -1).mT
    out = torch.cat((block(x, offsets).flatten(), whole.flatten()))
    fixture.check(out, atol=fixture.data["tolerance"]["float64_atol"], rtol=0)


@pytest.mark.parametrize(
    ("name", "count"), [("xt", 15349128), ("t", 27152232), ("s", 38631448), ("b", 52154792), ("l", 76238032)]
)
def test_published_counts(name: str, count: int) -> None:
    model = check_count(f"activemlp_{name}", count)
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]
    assert model.no_weight_decay() == {f"stages.{i}.positions.{kind}" for i in range(4) for kind in ("weight", "bias")}


def test_which_blocks_make_distances() -> None:
    """Every sixth in the larger nets, and never the last of a stage (unless it is alone)."""

    def making(**options: Any) -> list[list[int]]:
        with torch.device("meta"):
            model = vision.create_model("activemlp_s", **options)
        return [[j for j, block in enumerate(stage.blocks) if block.offset_layer is not None] for stage in model.stages]

    assert making() == [[0], [0], [0, 6, 12], [0]]
    assert making(depths=(3, 7, 19, 1)) == [[0], [0], [0, 6, 12], [0]]


def test_distances_are_those_of_the_run() -> None:
    """A block without the layer reads where the one before it does: its matrix has the same reach."""
    torch.manual_seed(0)
    model = small().double().eval()
    found = list(matrices(model, torch.randn(1, 3, 64, 64, dtype=torch.float64)).values())
    entries = [(m.to_dense() != 0) for m in found[:2]]
    assert torch.equal(*entries) and not torch.equal(found[2].to_dense() != 0, found[4].to_dense() != 0)
    assert all(block.given.offsets is None for stage in model.stages for block in stage.blocks)


def test_distances_among_other_mixers() -> None:
    """The first active block of a run makes them, and one that shares them otherwise makes its own."""
    model = small(
        depths=(4, 1, 1, 1),
        mixers="pooling, active(share=2), active(share=2), active(share=4); pooling; pooling; pooling",
        interval=4,
    )
    assert [block.offset_layer is not None for block in model.stages[0].blocks] == [False, True, False, True]
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_any_size() -> None:
    model = small().eval()
    assert [m.shape[2:] for m in model.forward_intermediates(torch.randn(1, 3, 50, 71))[1]] == [
        (12, 18), (6, 9), (3, 5), (2, 3)]  # fmt: skip


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = vision.create_model("activemlp_xt", depths=(1, 1, 1, 1))
    mixer = model.stages[3].blocks[0].token_mixer
    for layer in (mixer.atm_w, mixer.atm_h, mixer.proj, model.stages[2].blocks[0].mlp.fc1, model.head.fc):
        assert abs(layer.weight.std().item() - 0.02) < 1e-3 and not layer.bias.any()
    assert abs(model.stem.conv.weight.std().item() - (2 / (49 * 64)) ** 0.5) < 1e-3
    assert abs(model.stages[3].positions.weight.std().item() - (2 / 9) ** 0.5) < 0.03
    assert model.norm.eps == 1e-5


def test_training() -> None:
    check_training(small(drop_path_rate=0.1), torch.randn(2, 3, 64, 96))


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"interval must be a whole number in \[1, 1e\+09\], got 0"):
        small(interval=0)
    with pytest.raises(ValueError, match="entry per stage"):
        small(dims=(8, 16))
