"""What every family takes, under the same names and in the same order."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path

import pytest
import torch

import vision
from matmix import spec
from matmix.experiments.weights import load_weights
from matmix.mixers.pooling import Pooling
from matmix.mixers.ssd import SSD
from tests.vision.families import FAMILIES, SIZE, small
from vision.base import VisionModel, options_of
from vision.words import OF_MIXERS, RENAMED

CLASSES = {vision.model_info(name).cls: name for name in reversed(vision.list_models())}
FORMS = {vision.model_info(name).cls: name for name in FAMILIES}  # the last small form of every class


def mixers_of(model: torch.nn.Module) -> list[list[str]]:
    """The kinds of the token mixers, stage by stage, as far as a stage has any."""
    stages = [
        [type(module).__name__ for name, module in stage.named_modules() if name.endswith("token_mixer")]
        for stage in model.stages
    ]
    return [kinds for kinds in stages if kinds]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_only_depths_dims_and_mixers_go_by_position(cls: type[VisionModel]) -> None:
    positional = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["depths", "dims", "mixers"]


def test_every_class_has_a_small_form() -> None:
    assert set(FORMS) == set(CLASSES)


@pytest.mark.parametrize("name", FORMS.values())
def test_any_mixer_in_every_family(name: str) -> None:
    """One for all, or one a stage: they run, and gradients reach every weight."""
    for one in (True, False):
        depth = len(mixers_of(small(name)))
        each = ["pooling", *["sep_conv(kernel=3)"] * (depth - 1)]
        extra = {"channel_mixers": "identity"} if name == "vim2_t" else {}
        options = {"mixers": "pooling" if one else each, **extra}
        model = small(name, **options).train()
        found = mixers_of(model)
        if name != "vim2_t":
            assert [set(kinds) for kinds in found] == [{"Pooling"}] + [{"Pooling" if one else "SepConv"}] * (depth - 1)
        assert any(isinstance(module, Pooling) for module in model.modules())
        model(torch.randn(2, 3, SIZE, SIZE)).square().sum().backward()
        without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, without


@pytest.mark.parametrize("name", FORMS.values())
def test_a_mixer_of_another_kind_starts_as_it_does_by_itself(name: str) -> None:
    """The draws of a published model are for its own mixers."""
    torch.manual_seed(0)
    model = small(name, mixers="ssd(d_state=4, head_dim=4)")
    mixer = next(module for module in model.modules() if isinstance(module, SSD))
    alone = SSD(mixer.dim, d_state=4, head_dim=4)
    for layer in ("in_proj", "out_proj"):
        own, fresh = (getattr(each, layer).weight.std().item() for each in (mixer, alone))
        assert 0.5 < own / fresh < 2, layer


@pytest.mark.parametrize("name", [name for cls, name in FORMS.items() if "mlp_ratio" in options_of(cls)])
def test_widths_of_mlps_by_stage(name: str) -> None:
    count = len(small(name).stages)
    with pytest.raises(ValueError, match=f"mlp_ratio must be one value or {count}, one a stage"):
        small(name, mlp_ratio=[2.0] * (count + 1))
    for stage, ratio in zip(small(name, mlp_ratio=list(range(1, count + 1))).stages, range(1, count + 1), strict=True):
        assert {block.mlp.fc1.out_features / block.mlp.fc1.in_features for block in stage.blocks} == {ratio}


@pytest.mark.parametrize("name", sorted({*FORMS.values(), "dfformer_s18", "metaformer_ppaa_s12_224", "randformer_s12"}))
def test_another_image_size(name: str, tmp_path: Path) -> None:
    """Built for it, resized to it, and on the fly where the published code does so; everything else is refused."""
    model, larger = small(name).eval(), small(name, img_size=(SIZE + 32, SIZE)).eval()
    assert (model.img_size, larger.img_size) == ((SIZE, SIZE), (SIZE + 32, SIZE))
    x, state = torch.randn(2, 3, SIZE + 32, SIZE), model.state_dict()
    tied = any(value.shape != state[key].shape for key, value in larger.state_dict().items())
    if "dynamic_img_size" in options_of(type(model)):
        dynamic = small(name, dynamic_img_size=True).eval()
        dynamic.load_state_dict(state)
        assert dynamic(x).isfinite().all()
    if tied:
        torch.save(state, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match="resize_"):
            model(x)
        with pytest.raises(RuntimeError, match=r"size mismatch(.|\n)*resize_\(\(64, 32\)\)"):
            larger.load_state_dict(state)
        with pytest.raises(ValueError, match=r"of the wrong shape: .* resize_\(\(64, 32\)\)"):
            load_weights(larger, tmp_path / "weights.pth")
    else:
        before = model(x)
    assert model.resize_((SIZE + 32, SIZE)).img_size == larger.img_size
    larger.load_state_dict(model.state_dict())
    torch.testing.assert_close(larger(x), model(x))
    assert tied or torch.equal(model(x), before)


def test_weights_of_another_model_are_not_of_another_size() -> None:
    wide = small("gfnet_ti", dims=16).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch") as caught:
        small("gfnet_ti").load_state_dict(wide)
    assert "resize_" not in str(caught.value)


def test_old_words_are_errors_that_say_the_new_ones() -> None:
    """In create_model and in a constructor, for every word of the table."""
    owners = {"dim": "hydra_vit_b", "head_dim": "affnet", "kernels": "raftmlp_s", "mlp_ratios": "activemlp_xt",
              "patches": "gfnet_ti", "weight_resize": "dfformer_s18"}  # fmt: skip
    for old, new in RENAMED.items():
        name = owners.get(old, "caformer_s18")
        for build, kind in ((vision.model_info(name).cls, TypeError), (partial(vision.create_model, name), ValueError)):
            with pytest.raises(kind, match=f"has no option '{old}': {old} is called {new} here"):
                build(**{old: 1})
    for old in OF_MIXERS:
        with pytest.raises(ValueError, match=f"has no option '{old}': it is the mixer's, as in mixers='"):
            vision.create_model("raftmlp_s", **{old: 2})
    with pytest.raises(TypeError, match="DFFormer has no option 'droprate'; did you mean drop_rate"):
        vision.model_info("dfformer_s18").cls(droprate=0.1)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_words_of_the_project(cls: type[VisionModel]) -> None:
    """No option has a word that another one stands for."""
    old = set(options_of(cls)) & (set(RENAMED) | set(OF_MIXERS) | (set(spec.RENAMED) - {"expand", "hidden", "norm"}))
    assert not old, old
