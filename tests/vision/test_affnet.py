"""AFFNet against published numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vision
from matmix import load_published
from matmix.cost import count
from matmix.inspect import matrices
from matmix.matrices.circulant import Circulant
from matmix.mixers import mixer_info
from matmix.mixers.aff import AFF
from tests.fixtures import Fixture, load_fixture
from vision.layers.conv_norm import ConvNorm
from vision.models.affnet import PARTS, AFFBlock, AFFNet, AFFStage, InvertedResidual
from vision.published import rename

SOURCE = "microsoft/TokenMixers"
ACT = {"swish": "silu", "relu": "relu"}


def _state(fixture: Fixture) -> dict[str, torch.Tensor]:
    """Drawn weights, and the counters of the batch norms, which fixtures leave out."""
    counters = [name for name, kind in fixture.data["buffers"].items() if kind == "integer"]
    return fixture.state() | {name: torch.zeros((), dtype=torch.long) for name in counters}


def _check(fixture: Fixture, out: torch.Tensor) -> None:
    fixture.check(out, atol=fixture.data["tolerance"]["float64_atol"], rtol=0)


def _load_part(fixture: Fixture, part: nn.Module, blocks: int = 0) -> nn.Module:
    state = rename(_state(fixture), [*PARTS, (rf"^global_rep\.{blocks}\.", "norm."), (r"^global_rep\.", "blocks.")])
    part.double().load_state_dict(state, strict=True)
    assert sum(p.numel() for p in part.parameters()) == fixture.data["num_params"]
    return part.eval()


def test_inverted_residual() -> None:
    fixture = load_fixture("vision/aff_inverted_residual_stride2")
    part = InvertedResidual(12, 20, 2, stride=2, act="silu")
    assert part.out_grid((9, 14)) == (5, 7)
    _check(fixture, _load_part(fixture, part)(fixture.input().permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("double_skip", [False, True])
def test_block(double_skip: bool) -> None:
    fixture = load_fixture("vision/aff_block_double_skip" if double_skip else "vision/aff_block")
    block = _load_part(fixture, AFFBlock(AFF(16), double_skip=double_skip))
    _check(fixture, block(fixture.input().permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_stage_without_fusion() -> None:
    fixture = load_fixture("vision/aff_stage_no_fusion")
    stage = AFFStage(nn.Identity(), [AFFBlock(AFF(16)) for _ in range(2)], 16, fusion=False)
    state = rename(_state(fixture), [*PARTS, (r"^global_rep\.2\.", "norm."), (r"^global_rep\.", "blocks.")])
    stage.double().eval().load_state_dict(state, strict=True)
    _check(fixture, stage(fixture.input().permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _tiny(fixture: Fixture) -> AFFNet:
    config = fixture.config
    model = AFFNet(
        (1, 1, 1, 2, 1),
        tuple(config[f"layer{i}"]["out"] for i in range(1, 6)),
        img_size=fixture.data["input"]["shape"][2:],
        expand=config["expand_ratio"],
        act=ACT[config["activation"]],
        norm=config["attn_norm_layer"],
        output_stride=config.get("output_stride", 32),
        num_classes=10,
    )
    assert sum(p.numel() for p in model.parameters()) == fixture.data["num_params"]
    return load_published(model.double().eval(), _state(fixture), source=SOURCE)


def test_tiny_with_the_defaults_of_the_command_line() -> None:
    fixture = load_fixture("vision/affnet_tiny_relu_layer_norm")
    _check(fixture, _tiny(fixture)(fixture.input()))


def test_tiny_dilated() -> None:
    fixture = load_fixture("vision/affnet_tiny_output_stride_8")
    model = _tiny(fixture)
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 8, 8]
    _check(fixture, model.forward_intermediates(fixture.input(), [4], intermediates_only=True)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["affnet", "affnet_et"])
def test_full_size(name: str) -> None:
    fixture = load_fixture(f"vision/{name}")
    model = load_published(vision.create_model(name).double().eval(), _state(fixture), source=SOURCE)
    _check(fixture, model(fixture.input()))


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("affnet_et", 1436264, 0.4), ("affnet_t", 2654232, 0.8), ("affnet", 5568696, 1.5)],
)
def test_published_cost(name: str, parameters: int, macs: float) -> None:
    with torch.device("meta"):
        model = vision.create_model(name)
        cost = count(model, torch.empty(1, 3, 256, 256))
    assert cost.parameters == parameters and round(cost.macs / 1e9, 1) == macs and cost.fft_flops > 0
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16, 32]
    assert model.num_features == (960 if name == "affnet" else 4 * model.feature_info[-1]["num_chs"])
    assert model.pretrained_cfg["input_size"] == (3, 256, 256)


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"depths": (1, 2, 2, 4, 3), "dims": (64, 128, 256, 512, 640)}, 17178104),
        ({"depths": (2, 5, 4, 18, 6), "dims": (64, 128, 256, 512, 768)}, 46068088),
    ],
)
def test_counts_of_the_configured_sizes(options: dict, parameters: int) -> None:
    """``base`` and ``large`` of the published configuration, which have no results."""
    with torch.device("meta"):
        model = AFFNet(**options, fusion=(True, False, False))
    assert sum(p.numel() for p in model.parameters()) == parameters


def _small(**options: object) -> AFFNet:
    return AFFNet((1, 1, 1, 1, 1), (8, 8, 8, 16, 16), img_size=32, expand=2, num_classes=3, **options)


def test_any_size_and_its_matrices() -> None:
    model = _small().eval()
    found = matrices(model, torch.randn(2, 3, 45, 70))
    assert {name: matrix.grid for name, matrix in found.items()} == {
        "stages.2.blocks.0.token_mixer": (6, 9),
        "stages.3.blocks.0.token_mixer": (3, 5),
        "stages.4.blocks.0.token_mixer": (2, 3),
    }
    assert all(isinstance(matrix, Circulant) for matrix in found.values())
    assert model.stage_grids((45, 70)) == [(23, 35), (12, 18), (6, 9), (3, 5), (2, 3)]


def test_training_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = _small(drop_path_rate=0.1, drop_rate=0.1).train()
    model.set_grad_checkpointing()
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without, without


def test_other_mixers() -> None:
    model = _small(mixers="pooling, hydra, attention")
    kinds = [type(stage.blocks[0].token_mixer) for stage in model.stages[2:]]
    assert kinds == [mixer_info(name).cls for name in ("pooling", "hydra", "attention")]


def test_maps_stay_channels_last() -> None:
    """Convolutions and tokens see one memory: no copy between the two forms."""
    model, seen = _small().eval(), {}
    for name, module in model.named_modules():
        if isinstance(module, ConvNorm | InvertedResidual | AFFBlock | AFFStage):
            module.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out.is_contiguous()}))
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    assert len(seen) == 50 and all(seen.values()), seen


def test_refuses() -> None:
    with pytest.raises(ValueError, match="output_stride must be one of 8, 16, 32, got 4"):
        _small(output_stride=4)
    with pytest.raises(ValueError, match="norm must be one of 'layer_norm_2d', 'layer_norm', got 'batch'"):
        _small(norm="batch")
    with pytest.raises(ValueError, match="five each, one a stage"):
        AFFNet((1, 1), (8, 8))
