"""FFNet against published numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vision
from matmix import load_published
from matmix.cost import count
from matmix.inspect import matrices
from matmix.mixers.ffnified import FFNified
from tests.fixtures import Fixture, load_fixture
from vision.layers import Block
from vision.layers.ffnet import ConvMlp, NormedSkip, PatchMerging
from vision.models.ffnet import BLOCK_PARTS, MERGING_PARTS, SOURCE, FFNet, FFNetSeg, flattened
from vision.published import mixer_states, rename

COUNTS = {"ffnet_1": 13775656, "ffnet_2": 27208408, "ffnet_3": 48817896, "ffnet_4": 79868968, "ffnet_seg": 67210088}


def _state(fixture: Fixture) -> dict[str, torch.Tensor]:
    """Drawn weights, and the counters of the batch norms, which fixtures leave out."""
    counters = [name for name, kind in fixture.data["buffers"].items() if kind == "integer"]
    return fixture.state() | {name: torch.zeros((), dtype=torch.long) for name in counters}


def _check(fixture: Fixture, out: torch.Tensor) -> None:
    fixture.check(out, atol=fixture.data["tolerance"]["float64_atol"], rtol=0)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _part(fixture: Fixture, part: nn.Module, prefix: str = "") -> nn.Module:
    state = {f"{prefix}{name}": value for name, value in _state(fixture).items()}
    state = flattened(rename(state, [*MERGING_PARTS, *BLOCK_PARTS, (f"^{prefix}", "")]))
    part.double().load_state_dict(mixer_states(part, state, SOURCE), strict=True)
    assert _count(part) == fixture.data["num_params"]
    return part.eval()


def _on_maps(module: nn.Module, image: torch.Tensor) -> torch.Tensor:
    return module(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_channel_mixer() -> None:
    fixture = load_fixture("vision/ffnet_channel_mixer_k7")
    part = ConvMlp(8, 24, 7, pair=True).double().eval()
    state = {k: v.flatten(1) if k in ("fc1.weight", "fc2.weight") else v for k, v in _state(fixture).items()}
    part.load_state_dict(state, strict=True)
    _check(fixture, _on_maps(part, fixture.input()))


def test_block() -> None:
    fixture = load_fixture("vision/ffnet_block_layer_scale")
    mlp = ConvMlp(8, 24, 7, pair=True)
    block = Block(FFNified(8, (8, 11), kernel=7), mlp, nn.Identity(), nn.Identity(), layer_scale=1e-6)
    _check(fixture, _on_maps(_part(fixture, block), fixture.input()))


def test_patch_merging() -> None:
    fixture = load_fixture("vision/ffnet_patch_merging")
    part = _part(fixture, PatchMerging(8, 16))
    assert part.out_grid((9, 14)) == (5, 7)
    _check(fixture, _on_maps(part, fixture.input()))


def test_patch_merging_fused() -> None:
    fixture = load_fixture("vision/ffnet_patch_merging_fused")
    part = _part(fixture, PatchMerging(4, 8))
    part.skip.fuse_()
    part.conv = part.conv.fused()
    assert _count(part) == fixture.data["num_params_fused"]
    derived = {
        name: torch.tensor(entry["values"], dtype=torch.float64) for name, entry in fixture.data["derived"].items()
    }
    ours = {"proj.0.": part.conv, "proj.1.": part.skip.linear}
    for name, values in derived.items():
        prefix = name[: len("proj.0.")]
        value = dict(ours[prefix].named_parameters())[name.removeprefix(prefix)]
        torch.testing.assert_close(value.flatten(), values, rtol=1e-9, atol=1e-10)
    _check(fixture, _on_maps(part, fixture.input()))


def _tiny(fixture: Fixture) -> FFNet:
    config = fixture.config
    seg = "for_pretrain" in config
    model = (FFNetSeg if seg else FFNet)(
        config["depth"],
        config["embed_dim"],
        img_size=fixture.data["input"]["shape"][2:],
        stem_dim=config["in_dim"],
        kernel=3 if seg else config["kernel_sizes"],
        mlp_ratio=config["expansion_ratios"][0],
        layer_scale=1e-5 if config["use_layer_scale"] else None,
        num_classes=10,
    )
    assert _count(model) == fixture.data["num_params"]
    return load_published(model.double().eval(), _state(fixture), source=SOURCE)


@pytest.mark.parametrize("name", ["ffnet_tiny", "ffnet_tiny_fused", "ffnet_seg_tiny"])
def test_tiny(name: str) -> None:
    fixture = load_fixture(f"vision/{name}")
    model = _tiny(fixture)
    _check(fixture, model(fixture.input()))
    _check(fixture, model.fuse_()(fixture.input()))


def test_fused_weights_load() -> None:
    """A re-parameterised checkpoint of the published code goes into a fused model."""
    fixture = load_fixture("vision/ffnet_tiny_fused")
    shapes = {name: entry["shape"] for name, entry in fixture.data["derived"].items()}
    model = _tiny(fixture).fuse_()
    assert _count(model) == fixture.data["num_params_fused"]
    torch.manual_seed(0)
    state = {name: torch.randn(shape, dtype=torch.float64).abs() for name, shape in shapes.items()}
    load_published(model, state, source=SOURCE)
    block = model.stages[1].blocks[0]
    torch.testing.assert_close(block.token_mixer.fc.weight, state["stages.1.1.token_mixer.0.main.fc.weight"].flatten(1))
    torch.testing.assert_close(block.mlp.conv.weight, state["stages.1.1.channel_mixer.main.conv.weight"])
    torch.testing.assert_close(model.stages[3].downsample.skip.linear.bias, state["stages.3.0.proj.1.bias"])


@pytest.mark.slow
def test_full_size() -> None:
    fixture = load_fixture("vision/ffnet_1")
    model = vision.create_model("ffnet_1").double().eval()
    assert _count(model) == fixture.data["num_params"]
    load_published(model, _state(fixture), source=SOURCE)
    with torch.no_grad():
        last, (second,) = model.forward_intermediates(fixture.input(), [1])
        _check(fixture, second)
        logits = fixture.data["logits"]
        fixture.check(model.forward_head(last), key="logits", atol=0, rtol=logits["rtol_float64"])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("ffnet_3", "ffnet_4"))) for name in COUNTS]
)
def test_published_names_and_counts(name: str) -> None:
    fixture = load_fixture(f"vision/{name}")
    with torch.device("meta"):
        model = vision.create_model(name)
    assert _count(model) == fixture.data["num_params"] == COUNTS[name]
    entries = {**fixture.data["parameters"], **fixture.data["buffers"]}
    state = {n: torch.empty([] if shape == "integer" else shape, device="meta") for n, shape in entries.items()}
    load_published(model, state, source=SOURCE)
    fused = fixture.data.get("num_params_fused")
    assert fused is None or _count(model.fuse_()) == fused


@pytest.mark.parametrize(
    ("name", "size", "millions", "macs"),
    [
        ("ffnet_1", 256, 13.660, 2.985),
        ("ffnet_2", 256, 26.908, 6.003),
        pytest.param("ffnet_3", 384, 48.331, 22.828, marks=pytest.mark.slow),
        pytest.param("ffnet_4", 384, 79.200, 43.122, marks=pytest.mark.slow),
    ],
)
def test_cost_is_that_of_the_fused_network(name: str, size: int, millions: float, macs: float) -> None:
    with torch.device("meta"):
        model = vision.create_model(name).eval()
        cost = count(model.fuse_(), torch.empty(1, 3, size, size))
    assert (round(cost.parameters / 1e6, 3), round(cost.macs / 1e9, 3), cost.uncounted) == (millions, macs, ())


def _small(cls: type[FFNet] = FFNet, **options: object) -> FFNet:
    return cls((1, 1, 1, 1), (8, 8, 16, 16), img_size=64, stem_dim=8, num_classes=3, **options)


@pytest.mark.parametrize("cls", [FFNet, FFNetSeg])
def test_fused_is_the_same_and_comes_apart(cls: type[FFNet]) -> None:
    """After training steps: equal outputs, fewer parameters; each fused weight minus what was merged into it is the
    weight that was there before."""
    torch.manual_seed(0)
    model = _small(cls, kernel=7 if cls is FFNet else 3, layer_scale=0.1).double().train()
    x = torch.randn(4, 3, 64, 96, dtype=torch.float64)
    for _ in range(2):
        model(x)
    expected = model.eval()(x)
    fused = copy.deepcopy(model).fuse_()
    torch.testing.assert_close(fused(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(copy.deepcopy(fused).fuse_()(x), expected, rtol=1e-10, atol=1e-10)
    assert _count(fused) < _count(model)
    left = [name for name, part in fused.named_modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert left == (["norm.bn"] if cls is FFNet else [])
    if cls is FFNet:
        for old, new in zip(model.stages[1:], fused.stages[1:], strict=True):
            small, _ = old.downsample.conv.conv1.folded()
            main, _ = old.downsample.conv.conv.folded()
            torch.testing.assert_close(new.downsample.conv.weight - F.pad(small, (2, 2, 2, 2)), main)
            skip = old.downsample.skip
            scale = skip.norm.weight * torch.rsqrt(skip.norm.running_var + skip.norm.eps)
            without = new.downsample.skip.linear.weight - torch.eye(len(scale), dtype=torch.float64)
            torch.testing.assert_close(without / scale, skip.linear.weight)


def test_skip_in_training() -> None:
    part = NormedSkip(4).double().train()
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    flat = x.flatten(0, 2)
    normed = (flat - flat.mean(0)) * torch.rsqrt(flat.var(0, correction=0) + 1e-5)
    torch.testing.assert_close(part(x), x + F.linear(normed, part.linear.weight).view_as(x))


@pytest.mark.parametrize("cls", [FFNet, FFNetSeg])
def test_training_reaches_every_parameter(cls: type[FFNet]) -> None:
    torch.manual_seed(0)
    model = _small(cls, drop_path_rate=0.1, layer_scale=0.1).train()
    model.set_grad_checkpointing()
    out = model(torch.randn(4, 3, 64, 64))
    (out * torch.randn_like(out)).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without, without


def test_any_size_and_its_matrices() -> None:
    model = _small().eval()
    found = matrices(model, torch.randn(2, 3, 45, 70))
    assert [matrix.shape[2] for matrix in found.values()] == [12 * 18, 6 * 9, 3 * 5, 2 * 3]
    assert model.stage_grids((45, 70)) == [(12, 18), (6, 9), (3, 5), (2, 3)]


def test_maps_stay_channels_last() -> None:
    model, seen = _small(kernel=7).eval(), {}
    for name, module in model.named_modules():
        if isinstance(module, ConvMlp | PatchMerging | Block | FFNified):
            module.register_forward_hook(lambda module, args, out, name=name: seen.update({name: out.is_contiguous()}))
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    assert len(seen) == 15 and all(seen.values()), seen


def test_features_with_norms_and_other_classes() -> None:
    model = vision.create_model("ffnet_seg", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), feature_norms=True,
                                features_only=True, out_indices=(1, 3))  # fmt: skip
    maps = model(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 8, 8, 8), (1, 16, 2, 2)]
    assert model.feature_info.reduction() == [8, 32]
    whole = vision.create_model("ffnet_seg", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=5)
    assert whole(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    whole.reset_classifier(7)
    assert whole(torch.randn(1, 3, 64, 64)).shape == (1, 7) and isinstance(whole.head.fc[1], nn.LayerNorm)
    whole.reset_classifier(0)
    assert whole(torch.randn(1, 3, 64, 64)).shape == (1, 1024)
