"""iFormer against published numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import vision
from matmix.inspect import matrices
from tests.fixtures import load_fixture
from tests.vision.checks import check_count, check_output, check_training
from vision.models.inception_former import InceptionFormer

SOURCE = "sail-sg/iFormer"
HEADS = (1, 3, 7, 11)


def small(**options: Any) -> InceptionFormer:
    return InceptionFormer(
        **{
            "depths": (1, 1, 2, 1),
            "dims": (32, 48, 64, 64),
            "mixers": "inception(head_dim=8, pool=2); inception(head_dim=12, heads=2, pool=2); "
            "inception(head_dim=16, heads=2), inception(head_dim=16, heads=3); "
            "inception(head_dim=16, heads=3)",
            "num_classes": 10,
            "img_size": 64,
            **options,
        }
    )


def test_tiny() -> None:
    check_output(load_fixture("vision/iformer_tiny_64"), small(), SOURCE)


@pytest.mark.slow
def test_full_size() -> None:
    check_output(load_fixture("vision/iformer_small_224"), vision.create_model("inception_former_s"), SOURCE)


@pytest.mark.parametrize(
    ("name", "at_224", "at_384"),
    [("s", 19866344, 20899944), ("b", 47866216, 48936296), ("l", 86637096, 87743656)],
)
def test_published_counts(name: str, at_224: int, at_384: int) -> None:
    model = check_count(f"inception_former_{name}", at_224)
    check_count(f"inception_former_{name}", at_384, img_size=384)
    assert model.pretrained_cfg["crop_pct"] == 0.9 and model.pretrained_cfg["fixed_input_size"]
    assert len(model.no_weight_decay()) == 4
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]


def test_heads_change_inside_a_stage() -> None:
    """Published: 4 blocks with 7 heads of 10 attending, then 5 with 9; another depth asks for other mixers."""
    with torch.device("meta"):
        model = vision.create_model("inception_former_s")
    assert [block.token_mixer.heads for block in model.stages[2].blocks] == [7] * 4 + [9] * 5
    with pytest.raises(ValueError, match=r"does not divide depth=4"):
        vision.create_model("inception_former_s", depths=(3, 3, 4, 3))


def test_other_sizes() -> None:
    """Published: square images only, and even grids in the first stages. Here any, once the positions fit."""
    torch.manual_seed(0)
    model, x = small().double().eval(), torch.randn(2, 3, 53, 70, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"built for the grid \(16, 16\), got a map of \(14, 18\)"):
        model(x)
    dynamic = small(dynamic_img_size=True).double().eval()
    dynamic.load_state_dict(model.state_dict())
    out = dynamic(x)
    model.resize_((53, 70))
    assert model.stage_grids((53, 70)) == [(14, 18), (7, 9), (4, 5), (2, 3)]
    torch.testing.assert_close(model(x), out)  # interpolated once and for all, or in every forward
    assert small(img_size=(53, 70)).eval()(x.float()).shape == (2, 10)


def test_positions_are_interpolated_as_published() -> None:
    model = small()
    old = model.stages[1].downsample.positions.pos_embed.detach().clone()
    model.resize_(96)
    image = F.interpolate(old.permute(0, 3, 1, 2), (12, 12), mode="bilinear")
    torch.testing.assert_close(model.stages[1].downsample.positions.pos_embed.detach(), image.permute(0, 2, 3, 1))


def test_its_matrices() -> None:
    found = matrices(small(), torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape)[2:] for m in found.values()] == [(256, 256), (64, 64), (16, 16), (16, 16), (4, 4)]


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = vision.create_model(
        "inception_former_s", depths=(1, 1, 1, 1), mixers=", ".join(f"inception(heads={n})" for n in HEADS)
    )
    for name in ("stem.conv2", "stages.1.downsample.conv", "stages.3.blocks.0.token_mixer.low_mixer.qkv",
                 "stages.2.blocks.0.token_mixer.conv_fuse", "stages.3.blocks.0.mlp.fc1", "head.fc"):  # fmt: skip
        module = model.get_submodule(name)
        assert abs(module.weight.std().item() - 0.02) < 0.002, name
        assert module.bias is None or not module.bias.any(), name
    assert model.stages[0].blocks[0].layer_scale1 is None and model.stages[2].blocks[0].layer_scale2.eq(1e-6).all()
    assert model.norm.eps == 1e-6 and model.stem.norm1.eps == 1e-5
    assert abs(model.stem.positions.pos_embed.std().item() - 0.02) < 1e-3


def test_training() -> None:
    check_training(small(layer_scale=0.5, drop_path_rate=0.1), torch.randn(4, 3, 64, 64))


def test_refuses() -> None:
    with pytest.raises(ValueError, match="entry per stage"):
        small(dims=(32, 48))
    with pytest.raises(ValueError, match=r"heads \* head_dim"):
        small(mixers="inception(head_dim=8, heads=4)")
