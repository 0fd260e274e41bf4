"""GFNet and AFNONet against published numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import vision
from matmix.inspect import matrices
from matmix.matrices.circulant import Circulant
from tests.fixtures import load_fixture
from tests.vision.checks import check_count, check_output, check_training
from vision.models.gfnet import GFNet

SOURCE, AFNO = "raoyongming/GFNet", "NVlabs/AFNO-transformer"


def small(**options: Any) -> GFNet:
    return GFNet(**{"depths": (1, 2), "dims": (8, 12), "patch": (4, 2), "num_classes": 5, "img_size": 32, **options})


@pytest.mark.parametrize("depths", [(3,), (1, 1, 1), (2, 1)])
def test_tiny(depths: tuple[int, ...]) -> None:
    """However the blocks are cut into stages."""
    patch = (4, *(1,) * (len(depths) - 1))
    model = GFNet(depths, 12, patch=patch, img_size=32, num_classes=10)
    check_output(load_fixture("vision/gfnet_tiny"), model, SOURCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gfnet_ti", "gfnet_h_ti"])
def test_full_size(name: str) -> None:
    check_output(load_fixture(f"vision/{name}"), vision.create_model(name), SOURCE)


def test_tiny_afno() -> None:
    """Another mixer in the same frame."""
    model = GFNet((2,), 16, "afno(groups=4)", patch=(4,), img_size=32, num_classes=10)
    check_output(load_fixture("vision/afnonet_tiny"), model, AFNO)


@pytest.mark.parametrize(
    ("name", "count", "dim", "reduction"),
    [
        ("gfnet_ti", 7511784, 256, 16),
        ("gfnet_xs", 15985768, 384, 16),
        ("gfnet_s", 24869608, 384, 16),
        ("gfnet_b", 43120616, 512, 16),
        ("gfnet_h_ti", 15085096, 512, 32),
        ("gfnet_h_s", 32162632, 768, 32),
        ("gfnet_h_b", 53744200, 768, 32),
    ],
)
def test_published_counts(name: str, count: int, dim: int, reduction: int) -> None:
    model = check_count(name, count)
    assert model.num_features == dim and model.feature_info[-1]["reduction"] == reduction
    assert model.pretrained_cfg["input_size"] == (3, 224, 224) and model.pretrained_cfg["fixed_input_size"]
    assert model.no_weight_decay() == {"stem.positions.pos_embed"}


def test_double_skip_is_two_residual_layers() -> None:
    model = small(depths=(1,), dims=8, patch=(4,), double_skip=True).double().eval()
    block, x = model.stages[0].blocks[0], torch.randn(2, 8, 8, 8, dtype=torch.float64)
    y = x + block.token_mixer(block.norm1(x).flatten(1, 2)).view(x.shape)
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))


def test_other_sizes() -> None:
    """A net is built for an image size, or carried over to one; what does not fit is an error that says so."""
    torch.manual_seed(0)
    model = small().double().eval()
    with pytest.raises(ValueError, match=r"position embeddings were built for the grid \(8, 8\).*resize_"):
        model(torch.randn(1, 3, 32, 48, dtype=torch.float64))
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    before, kernel = model(x), model.stages[0].blocks[0].token_mixer
    reach = kernel.matrix(torch.zeros(1, 64, 8, dtype=torch.float64)).to_dense()[0, :, 0].view(8, 8, 8)
    model.resize_((48, 40))
    assert model.stage_grids((48, 40)) == [(12, 10), (6, 5)]
    shapes = {name: p.shape for name, p in small(img_size=(48, 40)).named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert model(torch.randn(1, 3, 48, 40, dtype=torch.float64)).shape == (1, 5)
    wide = kernel.matrix(torch.zeros(1, 120, 8, dtype=torch.float64)).to_dense()[0, :, 0].view(8, 12, 10)
    torch.testing.assert_close(wide[:, :4, :4], reach[:, :4, :4])  # the kernel, lag by lag
    model.resize_(32)
    assert model(x).shape == before.shape


def test_positions_are_interpolated_as_published() -> None:
    model = small()
    old = model.stem.positions.pos_embed.detach().clone()
    model.resize_((48, 40))
    image = F.interpolate(old.permute(0, 3, 1, 2), (12, 10), mode="bicubic", align_corners=False)
    torch.testing.assert_close(model.stem.positions.pos_embed.detach(), image.permute(0, 2, 3, 1))


def test_patches_at_the_border() -> None:
    """An image that is no multiple of the patch is filled up with zeros."""
    model = small(img_size=(30, 33)).eval()
    assert model.stage_grids((30, 33)) == [(8, 9), (4, 5)]
    x = torch.randn(2, 3, 30, 33)
    torch.testing.assert_close(model(x), model(F.pad(x, (0, 3, 0, 2))))


def test_its_matrices() -> None:
    found = matrices(small(), torch.randn(2, 3, 32, 32))
    assert [tuple(m.shape) for m in found.values()] == [(1, 8, 64, 64), (1, 12, 16, 16), (1, 12, 16, 16)]
    assert all(isinstance(m, Circulant) for m in found.values())


def test_mixers_share_all_other_weights() -> None:
    def weights(mixers: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        return small(mixers=mixers).state_dict()

    first, second = weights("global_filter"), weights("attention(head_dim=4)")
    same = set(first) & set(second)
    assert len(same) > 20 and all(torch.equal(first[name], second[name]) for name in same)


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = vision.create_model("gfnet_h_ti", depths=(1, 1, 1, 1))
    block = model.stages[3].blocks[0]
    assert abs(block.mlp.fc1.weight.std().item() - 0.02) < 1e-3 and not block.mlp.fc1.bias.any()
    assert abs(block.token_mixer.complex_weights.std().item() - 0.02) < 1e-3
    assert abs(model.stem.positions.pos_embed.std().item() - 0.02) < 1e-3
    assert block.layer_scale.eq(1e-3).all() and block.norm1.eps == 1e-6
    assert vision.create_model("gfnet_ti", depths=(1,)).stages[0].blocks[0].layer_scale is None


def test_training() -> None:
    check_training(small(layer_scale=0.5, drop_path_rate=0.1), torch.randn(4, 3, 32, 32))


def test_refuses() -> None:
    with pytest.raises(ValueError, match="dims must be one value or 2, one a stage"):
        GFNet((1, 1), (8,), patch=(4, 2))
    with pytest.raises(ValueError, match="dims may change where a stage has patches only"):
        GFNet((1, 1), (8, 12), patch=(4, 1))
    with pytest.raises(ValueError, match="unknown mixer"):
        small(mixers="global_filters")
