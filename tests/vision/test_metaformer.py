"""The MetaFormer families against the published code: names, counts, outputs; and what the skeleton promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vision
from matmix import load_published
from matmix.inspect import matrices
from tests.fixtures import Fixture, load_fixture
from vision.layers import MapNorm
from vision.metaformer import MetaFormer, stage_specs

TINY: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 64), "num_classes": 10}
BASELINES, DFFORMER, POOLFORMER = "sail-sg/metaformer", "okojoalg/dfformer", "sail-sg/poolformer"


def loaded(fixture: Fixture, name: str, source: str, **options: Any) -> torch.nn.Module:
    model = vision.create_model(name, **options).double().eval()
    load_published(model, fixture.state(), source)
    return model


def output_key(fixture: Fixture) -> str:
    """The published numbers in float64: those of the code with its casts to float32 taken out, where it has some."""
    return "output_float64" if "output_float64" in fixture.data else "output"


def count(model: torch.nn.Module) -> tuple[int, int]:
    """All and trainable numbers, as the published code counts: RandFormer's matrices are parameters there."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(b.numel() for name, b in model.named_buffers() if name.endswith("random_matrix"))
    return trainable + frozen, trainable


@pytest.mark.parametrize(
    ("case", "name", "source", "options"),
    [
        ("caformer_tiny_64x96", "caformer_s18", BASELINES, {}),
        ("randformer_tiny_64", "randformer_s12", BASELINES, {"img_size": 64}),
        (
            "metaformer_layer_scale_tiny_64",
            "convformer_s18",
            BASELINES,
            {"head": "linear", "layer_scale": (1e-5, 1e-5, None, None), "res_scale": 1.0},
        ),
        ("dfformer_tiny_64", "dfformer_s18", DFFORMER, {"img_size": 64}),
        ("dfformer_tiny_64x96", "dfformer_s18", DFFORMER, {"img_size": (64, 96)}),
        ("cdfformer_tiny_64", "cdfformer_s18", DFFORMER, {"img_size": 64}),
        ("gfformer_tiny_64", "gfformer_s18", DFFORMER, {"img_size": 64}),
        ("afno_tiny_64", "dfformer_s18_afno", DFFORMER, {"img_size": 64}),
        ("metaformer_ppaa_tiny_64", "metaformer_ppaa_s12_224", POOLFORMER, {"img_size": 64}),
    ],
)
def test_tiny_outputs(case: str, name: str, source: str, options: dict[str, Any]) -> None:
    fixture = load_fixture(f"vision/{case}")
    model = loaded(fixture, name, source, **TINY, **options)
    total = fixture.data["num_params"]
    assert count(model) == (total, fixture.data.get("num_params_trainable", total))
    fixture.check(model(fixture.input()), output_key(fixture))


@pytest.mark.parametrize("stage", range(4))
def test_dense_prediction_features_of_dfformer(stage: int) -> None:
    fixture = load_fixture(f"vision/dfformer_tiny_features_stage{stage}_64")
    options = {**TINY, "num_classes": 0, "img_size": 64, "dynamic_img_size": True, "feature_norms": True}
    features = vision.create_model("dfformer_s18", features_only=True, **options).double().eval()
    load_published(features.model, fixture.state(), DFFORMER)
    assert count(features)[0] == fixture.data["num_params"]
    fixture.check(features(fixture.input())[stage], output_key(fixture))


@pytest.mark.parametrize("stage", [0, 3])
def test_dense_prediction_features_of_poolformer(stage: int) -> None:
    fixture = load_fixture(f"vision/poolformer_tiny_features_stage{stage}_64")
    options = {**TINY, "num_classes": 0, "feature_norms": True}
    features = vision.create_model("poolformer_s12", features_only=True, **options).double().eval()
    load_published(features.model, fixture.state(), POOLFORMER)
    assert count(features)[0] == fixture.data["num_params"]
    fixture.check(features(fixture.input())[stage])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "source"),
    [
        ("identityformer_s12_224", BASELINES),
        ("randformer_s12_224", BASELINES),
        ("poolformerv2_s12_224", BASELINES),
        ("convformer_s18_224", BASELINES),
        ("caformer_s18_224", BASELINES),
        ("dfformer_s18_224", DFFORMER),
        ("cdfformer_s18_224", DFFORMER),
        ("gfformer_s18_224", DFFORMER),
        ("poolformer_s12_224", POOLFORMER),
        ("metaformer_ppff_s12_224", POOLFORMER),
    ],
)
def test_full_outputs(case: str, source: str) -> None:
    fixture = load_fixture(f"vision/{case}")
    name = case if case == "metaformer_ppff_s12_224" else case.removesuffix("_224")
    model = loaded(fixture, name, source)
    with torch.no_grad():
        fixture.check(model(fixture.input()), output_key(fixture))
        single = model.float()(fixture.input(dtype=torch.float32))
    scale = fixture.data["float32_vs_float64_max_abs"]
    fixture.check(single, output_key(fixture), atol=10 * scale, rtol=1e-4)


def test_map_norm_is_the_published_one() -> None:
    fixture = load_fixture("vision/norm_layernorm_general_hwc_5x4")
    norm = MapNorm(8).double()
    norm.load_state_dict(fixture.state())
    fixture.check(norm(fixture.input()))


# ------------------------------------------------------------------ timm's weights


def timm_tiny(name: str) -> torch.nn.Module:
    """timm's model of that name, with fewer and thinner layers (its entry points take no other depths)."""
    from timm.models import metaformer

    layer, attends = metaformer.LayerNorm2dNoBias, metaformer.LayerNormNoBias
    conv, attention = metaformer.SepConv, metaformer.Attention
    options: dict[str, Any] = {
        "caformer_s18": {
            "token_mixers": [conv, conv, attention, attention],
            "norm_layers": [layer] * 2 + [attends] * 2,
        },
        "convformer_s18": {"token_mixers": conv, "norm_layers": layer},
        "poolformerv2_s12": {"norm_layers": metaformer.GroupNorm1NoBias, "use_mlp_head": False},
        "poolformer_s12": {
            "downsample_norm": None,
            "mlp_act": torch.nn.GELU,
            "mlp_bias": True,
            "norm_layers": metaformer.GroupNorm1,
            "layer_scale_init_values": 1e-5,
            "res_scale_init_values": None,
            "use_mlp_head": False,
        },
    }[name]
    return metaformer.MetaFormer(**TINY, **options)


@pytest.mark.parametrize("name", ["caformer_s18", "convformer_s18", "poolformer_s12", "poolformerv2_s12"])
def test_weights_of_timm(name: str) -> None:
    """Ours with timm's weights gives timm's numbers, in the reading that timm has of the model."""
    torch.manual_seed(0)
    theirs = timm_tiny(name).double().eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if hasattr(theirs.head.fc, "norm"):
        theirs.head.fc.norm.eps = 1e-5  # the authors'; 1e-6 in timm
    pooled = {"final_norm": "pooled"} if name == "poolformer_s12" else {}
    ours = load_published(vision.create_model(name, **TINY, **pooled).double().eval(), theirs.state_dict(), "timm")
    x = torch.randn(2, 3, 70, 61, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
    features = vision.create_model(name, features_only=True, **TINY).double().eval()
    load_published(features.model, {k: v for k, v in theirs.state_dict().items() if not k.startswith("head")}, "timm")
    for mine, other in zip(features(x), theirs.forward_intermediates(x, intermediates_only=True), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_poolformer_normalises_before_pooling_as_its_authors_do() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    theirs = vision.create_model("poolformer_s12", **TINY).eval()
    timms = vision.create_model("poolformer_s12", final_norm="pooled", **TINY).eval()
    timms.load_state_dict({k.replace("norm.w", "norm.w"): v for k, v in theirs.state_dict().items()}, strict=False)
    assert "norm.weight" in theirs.state_dict() and "head.norm.weight" in timms.state_dict()
    assert not torch.allclose(theirs(x), timms(x), atol=1e-3)


# ------------------------------------------------------------------ the skeleton


def test_specs_of_stages() -> None:
    depths = (2, 2, 4, 2)
    assert stage_specs("pooling", depths) == [["pooling"] * n for n in depths]
    assert stage_specs("pooling, pooling, hydra, attention", depths)[2] == ["hydra"] * 4
    one = stage_specs("pooling; pooling; hydra*3, attention; attention(head_dim=16)", depths)
    assert one[2] == ["hydra", "hydra", "hydra", "attention"] and one[3] == ["attention(head_dim=16)"] * 2
    assert stage_specs(["pooling", "pooling", "hydra*3, attention", "attention"], depths)[2] == one[2]
    with pytest.raises(ValueError, match="3 mixers for 4 stages"):
        stage_specs("pooling, pooling, attention", depths)
    with pytest.raises(ValueError, match="does not divide depth=2"):
        stage_specs("hydra*3; pooling; pooling; pooling", depths)
    with pytest.raises(ValueError, match=r"must be one, or one for each of 4 stages, got .* for 2"):
        stage_specs(["pooling", "hydra"], depths)


def test_any_composition_runs() -> None:
    model = vision.create_model(
        "metaformer_s18",
        **TINY,
        mixers="pooling; sep_conv; hydra(expand=1, d_state=8), attention; toeplitz",
        img_size=64,
    )
    x = torch.randn(2, 3, 64, 64)
    model(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    names = [type(block.token_mixer).__name__ for stage in model.stages for block in stage.blocks]
    assert names == ["Pooling", "SepConv", "Hydra", "Attention", "Toeplitz"]


def test_models_that_differ_in_a_mixer_share_all_other_weights() -> None:
    def weights(mixers: str) -> dict[str, Tensor]:
        torch.manual_seed(3)
        return vision.create_model("metaformer_s18", **TINY, mixers=mixers).state_dict()

    first, second = weights("sep_conv"), weights("sep_conv, pooling, attention, sep_conv")
    same = [name for name in first if name in second and "stages.2" not in name]
    assert any("stages.3" in name and "token_mixer" in name for name in same)
    assert all(torch.equal(first[name], second[name]) for name in same)
    other = [block.token_mixer.pwconv1.weight for block in vision.create_model(
        "metaformer_s18", **{**TINY, "depths": (2, 1, 1, 1)}, mixers="sep_conv").stages[0].blocks]  # fmt: skip
    assert not torch.equal(*other)


def test_every_mixer_shows_its_matrix() -> None:
    model = vision.create_model("caformer_s18", **TINY).eval()
    shown = matrices(model, torch.randn(2, 3, 64, 64))
    assert sorted(shown) == [
        f"stages.{i}.blocks.{j}.token_mixer" for i, depth in enumerate(TINY["depths"]) for j in range(depth)
    ]
    assert shown["stages.0.blocks.0.token_mixer"].shape == (1, 32, 256, 256)
    assert shown["stages.3.blocks.0.token_mixer"].shape == (2, 2, 4, 4)


@pytest.mark.parametrize("name", ["caformer_s18", "dfformer_s18", "poolformer_s12"])
def test_reduced_precision(name: str) -> None:
    model = vision.create_model(name, **TINY, img_size=64).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(x)
        half = model.bfloat16()(x.bfloat16())
    scale = expected.abs().max()
    for out in (mixed, half):
        assert out.dtype == torch.bfloat16 and (out - expected).abs().max() < 0.1 * scale


def test_memory_in_place_is_never_anyone_elses() -> None:
    """Without gradients sums overwrite branches: not the images, not what intermediate features hold."""
    for name in ("identityformer_s12", "poolformer_s12", "caformer_s18"):
        model = vision.create_model(name, **TINY, img_size=64).eval()
        x = torch.randn(2, 3, 64, 64)
        kept = x.clone()
        expected, maps = model.forward_intermediates(x)
        with torch.no_grad():
            last, again = model.forward_intermediates(x)
        assert torch.equal(x, kept)
        for one, other in zip((expected, *maps), (last, *again), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = vision.create_model("caformer_s18", depths=(1, 1, 1, 1))
    for name in ("stem.conv", "stages.0.blocks.0.token_mixer.pwconv1", "stages.2.blocks.0.token_mixer.qkv",
                 "stages.1.blocks.0.token_mixer.dwconv", "stages.3.blocks.0.mlp.fc1", "head.fc.fc2"):  # fmt: skip
        module = model.get_submodule(name)
        assert abs(module.weight.std().item() - 0.02) < 0.002, name
        assert module.bias is None or not module.bias.any(), name
    block = model.stages[2].blocks[0]
    assert block.res_scale1.eq(1).all() and model.stages[1].blocks[0].res_scale1 is None
    assert block.mlp.act.scale.item() == 1 and block.mlp.act.bias.item() == 0
    pool = vision.create_model("poolformer_s12", depths=(1, 1, 1, 1))
    assert abs(pool.stem.conv.weight.std().item() - (3 * 3 * 49) ** -0.5) < 0.004  # PyTorch's own
    assert abs(pool.stages[3].blocks[0].mlp.fc1.weight.std().item() - 0.02) < 0.002
    assert pool.stages[0].blocks[0].layer_scale1.eq(1e-5).all()
    assert vision.create_model("poolformer_s36", depths=(1, 1, 1, 1)).stages[0].blocks[0].layer_scale1.eq(1e-6).all()


def test_drop_path_rises_linearly_over_all_blocks() -> None:
    model = vision.create_model("convformer_s18", **TINY, drop_path_rate=0.4)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    model.train()
    x = torch.randn(64, 3, 32, 32)
    torch.manual_seed(0)
    first = model(x)
    assert not torch.equal(first, model(x))


def test_other_sizes_only_on_request() -> None:
    torch.manual_seed(0)
    model = vision.create_model("dfformer_s18", **TINY, img_size=64).eval()
    x = torch.randn(2, 3, 96, 70)
    with pytest.raises(ValueError, match="resize_"):
        model(x)
    assert model.resize_((96, 70))(x).shape == (2, 10)
    assert model.stages[3].blocks[0].token_mixer.grid == (3, 3)
    free = vision.create_model("dfformer_s18", **TINY, img_size=64, dynamic_img_size=True).eval()
    assert free(x).shape == (2, 10)
    bicubic = vision.create_model("dfformer_s18", **TINY, img_size=64, mixers="dynamic_filter(resize='bicubic')").eval()
    bicubic.load_state_dict(free.state_dict())
    torch.testing.assert_close(bicubic.resize_((96, 70))(x), free(x))


def test_position_embedding_stands_before_the_first_attention() -> None:
    model = vision.create_model("metaformer_ppaa_s12_224", **TINY, img_size=64)
    assert model.stages[2].downsample.positions is not None and model.stages[3].downsample.positions is None
    assert model.stages[2].downsample.positions.pos_embed.shape == (1, 4, 4, 32)
    assert model.no_weight_decay() == {"stages.2.downsample.positions.pos_embed"}
    assert model.resize_(96)(torch.randn(1, 3, 96, 96)).shape == (1, 10)
    with pytest.raises(ValueError, match="pos_embed"):
        MetaFormer(**TINY, mixers="pooling", pos_embed=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 1)}, "dims must have an entry per stage"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"act": "tanh"}, "act must be one of"),
        ({"head": "conv"}, "head must be one of 'linear', 'mlp'"),
        ({"global_pool": "mean"}, "global_pool must be one of"),
        ({"res_scale": (1.0, 1.0)}, "res_scale must be one value or 4"),
        ({"drop_path_rate": 1.5}, "drop_path_rate"),
        ({"img_size": (3, 224, 224)}, "img_size"),
        ({"in_chans": 0}, "in_chans"),
        ({"num_classes": -1}, "num_classes"),
    ],
)
def test_bad_options_name_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaFormer(**{**TINY, **options})


def test_wrong_channels_name_themselves() -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(2, 1, 64, 64\)"):
        MetaFormer(**TINY)(torch.randn(2, 1, 64, 64))
