"""RaftMLP and the MLP-Mixer of its repository against published numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import vision
from matmix import load_published
from matmix.inspect import matrices
from matmix.mixers.mlp import TokenMLP
from matmix.mixers.raft import Raft
from tests.fixtures import Fixture, load_fixture
from tests.vision.checks import Tokens, check_count, check_output, check_training
from vision.models.raftmlp import MultiScaleDownsample, MultiScaleStem, RaftBlock, RaftMLP

SOURCE = "okojoalg/raft-mlp"


MIXER = "mlp(hidden=128), mlp(hidden=32)"  # two hidden units a token, on 8 x 8 and 4 x 4 patches
KINDS = ["raft", MIXER]


def configured(fixture: Fixture, **options: Any) -> RaftMLP:
    """The model of a published configuration."""
    layers = fixture.config["layers"]
    return RaftMLP(
        [layer["depth"] for layer in layers],
        [layer["dim"] for layer in layers],
        [f"raft(raft={layer['raft_size']})" if "raft_size" in layer else "mlp(hidden=72)" for layer in layers],
        kernel=[layer.get("embedding_kernels", [layer["patch_size"]]) for layer in layers],
        **{
            "img_size": fixture.config.get("pretrained_image_size", 224),
            "num_classes": fixture.config.get("num_classes", 1000),
            "dynamic_img_size": True,
            "shortcut": fixture.config.get("shortcut", False),
            **options,
        },
    )


def small(**options: Any) -> RaftMLP:
    return RaftMLP(
        **{
            "depths": (1, 1),
            "dims": (8, 12),
            "kernel": ((4, 8), (2,)),
            "num_classes": 5,
            "img_size": 32,
            **options,
        }
    )


@pytest.mark.parametrize(
    "name",
    [
        "raftmlp_tiny_48",
        "raftmlp_tiny_built48_at_64x56",
        "raftmlp_tiny_single_level_48",
        "raftmlp_tiny_shortcut_48",
        "mlp_mixer_tiny_48",
    ],
)
def test_tiny(name: str) -> None:
    fixture = load_fixture(f"vision/{name}")
    check_output(fixture, configured(fixture), SOURCE)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), [("raftmlp_s_224", "raftmlp_s"), ("mlp_mixer_b16_224", "mlp_mixer_b16")])
def test_full_size(case: str, name: str) -> None:
    check_output(load_fixture(f"vision/{case}"), vision.create_model(name), SOURCE)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"depths": (12,), "dims": (768,), "kernel": ((16,),), "mixers": "raft(raft=1)"}, 58105432),
        ({"depths": (12,), "dims": (768,), "kernel": ((16,),)}, 58162888),
        ({"depths": (12,), "dims": (768,), "kernel": ((16,),), "mixers": "raft(raft=4)"}, 58390696),
        ({"depths": (12,), "dims": (768,), "kernel": ((16, 32),)}, 60522184),
        ({"depths": (36,), "dims": (384,), "kernel": ((16,),)}, 43532296),
        ({"dims": (96, 192, 384, 768), "kernel": ((4,), (2,), (2,), (2,))}, 19920640),
        ({"dims": (96, 192, 384, 768)}, 21413632),
    ],
)
def test_counts_of_the_published_configurations(options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        model = RaftMLP(**options)
    assert sum(p.numel() for p in model.parameters()) == count


def test_widths_of_the_original_mixer() -> None:
    """MLP-Mixer B/16 (2105.01601, table 1: 59 M) has 384 hidden units where this repository has 392."""
    model = check_count("mlp_mixer_b16", 59880472, mixers="mlp(hidden=384)")
    assert model.stages[0].blocks[0].token_mixer.fc1.out_features == 384


@pytest.mark.parametrize("name", ["2x4_16x16", "4x8_16x16", "4x8x16_16x16"])
def test_multi_scale_patches(name: str) -> None:
    fixture = load_fixture(f"vision/embed_cross_scale_{name}")
    config = fixture.config
    stem = MultiScaleStem(config["in_channels"], config["out_channels"], config["kernels"])
    check_output(fixture, Tokens(stem), SOURCE)


def test_patches_of_other_channels_are_split_by_the_published_ones() -> None:
    """timm then adds them up for a model of one channel."""
    state = load_fixture("vision/embed_cross_scale_4x8_16x16").state()
    stem = MultiScaleStem(1, 8, (4, 8))
    ours = type(stem).published[SOURCE](stem, state)
    assert [tuple(ours[f"convs.{i}.weight"].shape) for i in (0, 1)] == [(8, 3, 4, 4), (8, 3, 8, 8)]


@pytest.mark.parametrize("name", ["raft_block_6x6_r1", "raft_block_6x6_r2", "raft_block_built6_at_8x5_r2"])
def test_raft_block(name: str) -> None:
    fixture = load_fixture(f"vision/mixer_{name}")
    config = fixture.config
    block = RaftBlock(Raft(8, (6, 6), raft=config["raft_size"]), 32, 0.0, dynamic=True)
    check_output(fixture, Tokens(block, (config["height"], config["width"]), below="block."), SOURCE)


def test_mixer_block() -> None:
    fixture = load_fixture("vision/mixer_original_block_6x6")
    check_output(fixture, Tokens(RaftBlock(TokenMLP(8, (6, 6), hidden=72), 32, 0.0), (6, 6)), SOURCE)


def test_weights_of_another_model_are_named() -> None:
    fixture = load_fixture("vision/raftmlp_tiny_48")
    with pytest.raises(ValueError, match=r"unexpected: levels\.2.*weight \(16, 40, 2, 2\) for \(12, 8, 2, 2\)"):
        load_published(small(), fixture.state(), source=SOURCE)


@pytest.mark.parametrize("mixers", KINDS)
def test_other_sizes(mixers: str) -> None:
    """Any size runs by the published rule; weights for a size come from ``img_size`` or ``resize_``."""
    torch.manual_seed(0)
    model = small(mixers=mixers, dynamic_img_size=True).double().eval()
    x = torch.randn(2, 3, 37, 50, dtype=torch.float64)
    assert model.stage_grids((37, 50)) == [(10, 13), (5, 7)]
    assert [m.shape[2:] for m in model.forward_intermediates(x)[1]] == [(10, 13), (5, 7)]
    assert {block.token_mixer.grid for stage in model.stages for block in stage.blocks} == {(8, 8), (4, 4)}
    before = model(x)
    model.resize_((37, 50))
    assert {block.token_mixer.grid for stage in model.stages for block in stage.blocks} == {(10, 13), (5, 7)}
    fresh = small(mixers=mixers, img_size=(37, 50))
    assert {name: p.shape for name, p in fresh.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert not torch.allclose(model(x), before)


def test_shortcuts_reach_the_last_map() -> None:
    """Levels, not stages: a level that is cut into stages has one shortcut, at its end."""
    options = {"depths": (1, 1, 1), "dims": (8, 8, 12), "kernel": ((4, 8), (), (2,))}
    model = small(shortcut=True, **options).eval()
    assert [stage.shortcut is not None for stage in model.stages] == [False, True, False]
    x = torch.randn(2, 3, 32, 32)
    plain = small(**options).eval()
    state = model.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    last, maps = model.forward_intermediates(x, norm=True)
    torch.testing.assert_close(maps[-1], last)
    scale, shift = model.stages[1].shortcut(maps[1].permute(0, 2, 3, 1)).chunk(2, -1)
    torch.testing.assert_close(last, plain.forward_features(x) * scale[..., None, None] + shift[..., None, None])
    torch.testing.assert_close(model.forward_head(last), model(x))
    model.prune_intermediate_layers([1])
    assert not any("shortcut" in name for name, _ in model.named_parameters())


def test_an_image_is_enlarged_to_whole_patches() -> None:
    model = small(img_size=(32, 36)).eval()
    x = torch.randn(1, 3, 30, 33)
    larger = F.interpolate(x, (32, 36), mode="bicubic", align_corners=False)
    torch.testing.assert_close(model(x), model(larger))


def test_its_matrices() -> None:
    found = matrices(small(), torch.randn(2, 3, 32, 32))
    assert [tuple(m.shape) for m in found.values()] == [(2, 4, 128, 129), (2, 6, 32, 33)]
    found = matrices(small(mixers=MIXER), torch.randn(2, 3, 32, 32))
    assert [tuple(m.shape) for m in found.values()] == [(2, 8, 64, 65), (2, 12, 16, 17)]


def test_initialisation_is_that_of_linear_layers() -> None:
    """All of the published weights start as in PyTorch; the patches of all sizes are one linear layer."""
    torch.manual_seed(0)
    model = vision.create_model("raftmlp_s", depths=(1, 1, 1, 1))
    bound = (3 * (16 + 64)) ** -0.5
    for conv in model.stem.convs:
        assert 0.98 * bound < conv.weight.abs().max().item() <= bound
    assert 0.98 * 512**-0.5 < model.head.fc.weight.abs().max().item() <= 512**-0.5
    assert 0.98 * 512**-0.5 < model.stages[3].blocks[0].mlp.fc1.weight.abs().max().item() <= 512**-0.5


def test_drop_path_is_the_same_in_every_block() -> None:
    model = vision.create_model("raftmlp_s", drop_path_rate=0.1)
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert {block.drop_path.drop_prob for block in blocks} == {0.1}
    assert {block.token_mixer.vertical.drop_path for block in blocks} == {0.1}
    mixer = vision.create_model("mlp_mixer_b16", depths=(1,), drop_path_rate=0.1)
    assert mixer.stages[0].blocks[0].drop_path.drop_prob == 0.1


@pytest.mark.parametrize("mixers", KINDS)
def test_training(mixers: str) -> None:
    model = small(mixers=mixers, drop_path_rate=0.1, shortcut=True, img_size=(32, 40))
    check_training(model, torch.randn(4, 3, 32, 40))


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"kernel must hold multiples of the smallest .* got \(3, 6\)"):
        MultiScaleDownsample(4, 4, (3, 6))
    with pytest.raises(ValueError, match="dims and kernel must have an entry per stage"):
        RaftMLP((1, 1), (8,), kernel=((4,), (2,)))
    with pytest.raises(ValueError, match="the first stage needs patches"):
        RaftMLP((1,), (8,), kernel=((),))
    with pytest.raises(ValueError, match="dims may change where a stage has patches only"):
        RaftMLP((1, 1), (8, 12), kernel=((4,), ()))
