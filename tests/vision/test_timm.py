"""timm's checks of a model (its ``tests/test_models.py``), over all our names.

The quick suite takes the first name of each family with one block a stage and small images; the slow one every name
as published. What timm checks and we do not offer stands in ``EXCEPTIONS``, with the reason.
"""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.optim
import torch
from timm.layers import create_feature_extractor, get_graph_node_names
from torch import Tensor, nn

import vision
from vision.base import options_of
from vision.metaformer import MetaFormer

EXCEPTIONS = {
    "torch.jit.script, torch.jit.trace": "a mixer hands matrices around, Python objects that TorchScript does not "
    "know; torch.compile, torch.export and torch.fx (a mixer being one node) work instead, below",
    "ONNX of models with Fourier transforms": "the ONNX exporter translates no complex tensors",
    "downloads of pretrained weights": "tests have no network; files load in every naming (test_registry.py)",
}

# Families whose options are other than depths and img_size, for the quick suite: what makes them small.
THIN = {"dims": (16, 32, 64, 128)}
SMALL: dict[str, dict[str, Any]] = {
    "vim2": THIN, "vmamba": THIN, "raftmlp": THIN, "activemlp": THIN, "hydra": {"depths": (1, 1, 1), "dims": 96},
    "inception": {"mixers": ", ".join(f"inception(heads={n})" for n in (1, 3, 7, 11))},
}  # fmt: skip
# Least image side of the quick suite, where 64 is too small.
SIDE: dict[str, int] = {}


# The smallest name of every family, and of what else has code of its own.
FAMILIES = ("identityformer_s12", "randformer_s12", "poolformer_s12", "poolformerv2_s12", "convformer_s18",
            "caformer_s18", "dfformer_s18", "cdfformer_s18", "gfformer_s18", "dfformer_s18_afno",
            "metaformer_ppaa_s12_224", "metaformer_ppff_s12_224", "gfnet_ti", "gfnet_h_ti", "affnet_et", "activemlp_xt",
            "raftmlp_s", "mlp_mixer_b16", "inception_former_s", "ffnet_1", "ffnet_seg", "vim2_t", "hydra_vit_b",
            "vmamba_v0_t")  # fmt: skip
# Those that are compiled and exported in the quick suite; the others in the slow one.
COMPILED = ("caformer_s18", "gfformer_s18")
ALL = [pytest.param(name, marks=pytest.mark.slow) for name in vision.list_models()]


def small(name: str) -> dict[str, Any]:
    """Options that make a model quick to build and run."""
    family = name.split("_")[0]
    options = dict(SMALL.get(name, SMALL.get(family, {})))
    info = vision.model_info(name)
    if "depths" in options_of(info.cls) and "depths" not in options:
        default = inspect.signature(info.cls).parameters.get("depths")
        depths = info.defaults.get("depths", default.default if default else ())
        options["depths"] = (1,) * len(depths)
    if issubclass(info.cls, MetaFormer):
        options["dims"] = (16, 24, 32, 64)
    return {**options, "img_size": SIDE.get(family, 64)}


def image(model: nn.Module, batch: int, side: int | None = None) -> Tensor:
    channels, rows, columns = model.default_cfg["input_size"]
    return torch.randn(batch, channels, side or rows, side or columns)


def finite(x: Tensor) -> bool:
    """No NaN, as far as there are numbers."""
    return x.is_meta or not x.isnan().any()


def check_forward(model: nn.Module, x: Tensor) -> None:
    model.eval()
    out = model(x)
    assert out.shape == (len(x), model.num_classes) and not out.isnan().any()
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), out, rtol=1e-4, atol=1e-5)
    model.set_grad_checkpointing(False)


def check_backward(model: nn.Module, x: Tensor) -> None:
    model.train()
    model.reset_classifier(42)
    for checkpointing in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        out = model(x)
        assert out.shape == (len(x), 42) and not out.isnan().any()
        out.square().mean().backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, f"no gradient for {without}"
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.set_grad_checkpointing(False)


def check_configuration(model: nn.Module, x: Tensor, pool: tuple[int, ...]) -> None:
    """Shapes of the parts, what the configuration names, and resets of the classifier and the pooling."""
    model.eval()
    cfg, state = model.default_cfg, model.state_dict()
    assert model.num_classes >= 0 and model.num_features > 0 and model.head_hidden_size > 0
    for key in ("classifier", "first_conv"):
        listed = cfg[key] if isinstance(cfg[key], tuple | list) else (cfg[key],)
        assert all(f"{part}.weight" in state for part in listed), cfg[key]
    assert cfg["num_classes"] == 1000 and len(cfg["mean"]) == len(cfg["std"]) == 3 and cfg["interpolation"]
    with torch.no_grad():
        features = model.forward_features(x)
        before = model.forward_head(features, pre_logits=True)
        assert features.shape == (len(x), model.num_features, *pool)
        assert before.shape == (len(x), model.head_hidden_size)
        assert model.forward_head(features).shape == (len(x), model.num_classes)
        assert isinstance(model.get_classifier(), nn.Module)
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model.forward_head(features), before)
        model.reset_classifier(0, "")
        assert model.forward_head(features).shape == (len(x), model.head_hidden_size, *pool)
        model.reset_classifier(7, "avg")
        assert model.forward_head(features).shape == (len(x), 7)


def check_construction(name: str, x: Tensor, options: dict[str, Any]) -> None:
    """No classifier, and no pooling, by arguments."""
    with torch.no_grad():
        bare = vision.create_model(name, **{**options, "num_classes": 0, "global_pool": ""}).eval()
        assert bare(x).dim() == 4 and bare(x).shape[2:] == bare.forward_features(x).shape[2:]
        pooled = vision.create_model(name, **{**options, "num_classes": 0}).eval()
        assert pooled(x).shape == (len(x), pooled.head_hidden_size)


def check_features(name: str, x: Tensor, options: dict[str, Any]) -> None:
    """features_only: channels and strides are what feature_info says."""
    model = vision.create_model(name, features_only=True, **options).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    assert len(channels) >= 3
    with torch.no_grad():
        maps = model(x)
    assert len(maps) == len(channels)
    for wide, stride, features in zip(channels, reductions, maps, strict=True):
        assert features.shape[:2] == (len(x), wide) and finite(features)
        for got, side in zip(features.shape[2:], x.shape[2:], strict=True):
            assert side // stride <= got <= math.ceil(side / stride) + 1


def check_chosen_features(name: str, x: Tensor, options: dict[str, Any]) -> None:
    for indices in ((0, 2), (-1,)):
        model = vision.create_model(name, features_only=True, out_indices=indices, **options).eval()
        with torch.no_grad():
            assert [features.shape[1] for features in model(x)] == model.feature_info.channels()


def check_intermediates(model: nn.Module, x: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
        torch.testing.assert_close(last, model.forward_features(x))
        some = model.forward_intermediates(x, indices=[1], intermediates_only=True)
        torch.testing.assert_close(some[0], maps[1])
        torch.testing.assert_close(model.forward_intermediates(x, norm=True)[1][-1], last)
        shape = model.forward_intermediates(x, output_fmt="NHWC")[1][0].shape
        assert shape == (maps[0].shape[0], *maps[0].shape[2:], maps[0].shape[1])
        pruned = copy.deepcopy(model)
        pruned.prune_intermediate_layers([0])
        torch.testing.assert_close(pruned.forward_intermediates(x, indices=[0], intermediates_only=True)[0], maps[0])
        assert len(list(pruned.parameters())) < len(list(model.parameters()))


def check_groups(model: nn.Module) -> None:
    """Every parameter belongs to a layer, in the order of depth, and optimisers of timm take the model."""
    names = [name for name, _ in model.named_parameters()]
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert sorted(n for group in groups.values() for n in group) == sorted(names)
    layer = {n: index for index, group in groups.items() for n in group}
    assert all(layer[n] == 0 for n in names if n.startswith("stem."))
    blocks = [n for n in names if ".blocks." in n]
    order = [layer[n] for n in sorted(blocks, key=lambda n: [int(part) for part in n.split(".") if part.isdigit()][:2])]
    assert order == sorted(order) and order[0] > 0
    assert all(layer[n] >= order[-1] for n in names if n.startswith("head."))
    assert len(timm.models.group_parameters(model, model.group_matcher(coarse=True))) <= len(groups)
    assert model.no_weight_decay() <= set(names)
    timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.9)


# ------------------------------------------------------------------ quick: a family, small


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    options = small(name)
    side = options["img_size"]
    model = vision.create_model(name, **options)
    x = image(model, 2, side)
    pool = tuple(model.forward_features(x).shape[2:])
    check_forward(model, x)
    check_intermediates(model, x)
    check_groups(model)
    check_backward(copy.deepcopy(model), x)
    check_configuration(model, x, pool)
    check_construction(name, x, options)
    check_features(name, x, options)
    check_chosen_features(name, x, options)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_sizes_and_channels(name: str) -> None:
    """Not square, and of other channels (resizing is in test_options.py)."""
    options = {**small(name), "num_classes": 3}
    rows, columns = options["img_size"] + 32, options["img_size"]
    built = vision.create_model(name, **{**options, "img_size": (rows, columns), "in_chans": 5}).eval()
    with torch.no_grad():
        out = built(torch.randn(2, 5, rows, columns))
        assert out.shape == (2, 3) and not out.isnan().any()
        with pytest.raises(ValueError, match="in_chans"):
            built(torch.randn(2, 3, rows, columns))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in COMPILED else pytest.mark.slow) for name in FAMILIES]
)
def test_compile_export_and_fx(name: str) -> None:
    torch._dynamo.reset()
    options = small(name)
    model = vision.create_model(name, **options).eval()
    x = image(model, 2, options["img_size"])
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-5)
        _, nodes = get_graph_node_names(model)
        torch.testing.assert_close(create_feature_extractor(model, [nodes[-1]])(x)[nodes[-1]], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["caformer_s18", "convformer_s18", "poolformer_s12", "poolformerv2_s12", "randformer_s12"]
)
def test_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    options = small(name)
    model = vision.create_model(name, **options).eval()
    x = image(model, 2, options["img_size"])
    torch.onnx.export(model, (x,), dynamo=True).save(str(tmp_path / "model.onnx"))
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), model(x).detach(), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ slow: every name as published


@pytest.mark.parametrize("name", ALL)
def test_published_shapes(name: str) -> None:
    """Configuration, resets, features and layers at the published size, without numbers where that runs."""
    with torch.device("meta"):
        model = vision.create_model(name)
        x = image(model, 1, min(384, model.default_cfg["input_size"][-1]))
        check_groups(model)
        check_configuration(model, x, model.default_cfg["pool_size"])
        check_features(name, x, {})


@pytest.mark.parametrize("name", ALL)
def test_published_forward_and_backward(name: str) -> None:
    model = vision.create_model(name, num_classes=42, drop_path_rate=0.1).eval()
    with torch.no_grad():
        out = model(image(model, 1, min(384, model.default_cfg["input_size"][-1])))
    assert out.shape == (1, 42) and not out.isnan().any()
    fixed = model.default_cfg.get("fixed_input_size", False)
    model.train().set_grad_checkpointing()
    model(image(model, 2, None if fixed else 128)).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or p.grad.isnan().any())]
    assert not without, f"no gradient for {without}"
