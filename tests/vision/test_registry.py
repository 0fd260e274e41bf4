"""Names of models, ours and timm's, and what create_model lets through."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import vision
from vision.base import options_of
from vision.metaformer import MetaFormer

TINY = {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 64), "num_classes": 5}


def test_every_name_is_in_timm_under_the_rule() -> None:
    for name in vision.list_models():
        info = vision.model_info(name)
        assert info.timm_name in (name, f"matmix_{name}")
        assert timm.is_model(info.timm_name)
        if info.timm_name == name:
            assert timm.models.model_entrypoint(name).__module__.startswith("vision.models")
        else:  # timm has a model of the name, and keeps it
            assert timm.models.model_entrypoint(name).__module__.startswith("timm.")


def test_importing_us_changes_no_name_of_timm() -> None:
    code = (
        "import timm, warnings; warnings.simplefilter('error')\n"
        "before = {n: timm.models.model_entrypoint(n) for n in timm.list_models()}\n"
        "import vision\n"
        "assert all(timm.models.model_entrypoint(n) is f for n, f in before.items())\n"
        "ours = {vision.timm_name(n) for n in vision.list_models()}\n"
        "assert set(timm.list_models()) == set(before) | ours and not ours & set(before)\n"
        "print(len(ours))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(vision.list_models())


def test_the_plain_name_is_ours_here_and_timms_there() -> None:
    assert isinstance(vision.create_model("caformer_s18", **TINY), MetaFormer)
    assert not isinstance(timm.create_model("caformer_s18"), MetaFormer)
    assert isinstance(timm.create_model("matmix_caformer_s18", **TINY), MetaFormer)
    assert isinstance(timm.create_model("dfformer_s18", **TINY), MetaFormer)


def test_published_names() -> None:
    sizes = {
        "identityformer": "s12 s24 s36 m36 m48", "randformer": "s12 s24 s36 m36 m48",
        "poolformer": "s12 s24 s36 m36 m48",
        "poolformerv2": "s12 s24 s36 m36 m48", "convformer": "s18 s36 m36 b36", "caformer": "s18 s36 m36 b36",
        "dfformer": "s18 s36 m36 b36 s18_afno s18_k2 s18_d8 s18_gelu s18_relu", "cdfformer": "s18 s36 m36 b36",
        "gfformer": "s18", "metaformer": "s18",
    }  # fmt: skip
    names = {f"{family}_{size}" for family, listed in sizes.items() for size in listed.split()}
    assert names <= set(vision.list_models())
    assert vision.list_models("caformer_*") == ["caformer_b36", "caformer_m36", "caformer_s18", "caformer_s36"]


def test_unknown_names_and_options_list_the_close_ones() -> None:
    with pytest.raises(ValueError, match="did you mean caformer_s18"):
        vision.create_model("cafomer_s18")
    with pytest.raises(ValueError, match="caformer_s18 has no option 'drop_path'; did you mean drop_path_rate"):
        vision.create_model("caformer_s18", drop_path=0.1)
    with pytest.raises(ValueError, match="has no option 'dynamic_img_size'"):
        vision.create_model("caformer_s18", dynamic_img_size=True)
    with pytest.raises(ValueError, match=r"dfformer_s18 has no option 'colour'; known: depths, dims"):
        timm.create_model("dfformer_s18", colour=3)
    with pytest.raises(ValueError, match="features_only"):
        vision.create_model("caformer_s18", out_indices=(1,))


def test_options_reach_the_parent() -> None:
    options = options_of(vision.model_info("dfformer_s18").cls)
    assert "dynamic_img_size" in options and "drop_path_rate" in options and "self" not in options


def test_common_options_are_every_familys() -> None:
    common = {"num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate", "img_size"}
    for name in vision.list_models():
        assert common <= set(options_of(vision.model_info(name).cls)), name


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="is taken"):
        vision.register("caformer_s18", MetaFormer, {}, paper="", source="")
    with pytest.raises(ValueError, match="no option depth"):
        vision.register("metaformer_new", MetaFormer, {"depth": 3}, paper="", source="")


def test_published_preprocessing() -> None:
    cfg = vision.create_model("poolformer_s12", **TINY).pretrained_cfg
    assert (cfg["crop_pct"], cfg["interpolation"], cfg["input_size"]) == (0.9, "bicubic", (3, 224, 224))
    assert vision.create_model("poolformer_m36", **TINY).pretrained_cfg["crop_pct"] == 0.95
    large = vision.create_model("caformer_s18.sail_in1k_384", **TINY).pretrained_cfg
    assert (large["input_size"], large["pool_size"], large["crop_pct"]) == ((3, 384, 384), (12, 12), 1.0)
    assert large["hf_hub_id"] == "timm/caformer_s18.sail_in1k_384"
    data = timm.data.resolve_model_data_config(vision.create_model("dfformer_s18", **TINY))
    assert data["mean"] == timm.data.IMAGENET_DEFAULT_MEAN and data["input_size"] == (3, 224, 224)
    with pytest.raises(ValueError, match="has no tag 'sail_in1k_385'; did you mean sail_in1k_384"):
        vision.create_model("caformer_s18.sail_in1k_385", **TINY)


@pytest.mark.parametrize("naming", ["ours", "theirs", "wrapped"])
def test_pretrained_from_a_file_in_any_naming(naming: str, tmp_path: Path) -> None:
    source = vision.create_model("convformer_s18", **TINY)
    ours = source.state_dict()
    theirs = {}
    for name, value in ours.items():  # as sail-sg/metaformer has it
        name = name.replace("head.fc.", "HEAD.").replace("head.norm.", "norm.").replace("HEAD.", "head.")
        name = name.replace("stem.norm", "downsample_layers.0.post_norm").replace("stem.", "downsample_layers.0.")
        if ".downsample." in name:
            stage = name.split(".")[1]
            name = name.replace(f"stages.{stage}.downsample", f"downsample_layers.{stage}").replace("norm", "pre_norm")
        if "scale1" in name or "scale2" in name:
            name += ".scale"
        theirs[name.replace(".blocks", "")] = value
    state = {"ours": ours, "theirs": theirs, "wrapped": {"state_dict": theirs}}[naming]
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    overlay = {"file": str(path), "num_classes": 5}
    model = vision.create_model("convformer_s18", pretrained=True, pretrained_cfg_overlay=overlay, **TINY)
    assert all(torch.equal(ours[name], value) for name, value in model.state_dict().items())
    more = {**TINY, "num_classes": 7, "in_chans": 1}
    model = vision.create_model("convformer_s18", pretrained=True, pretrained_cfg_overlay=overlay, **more)
    assert torch.equal(model.stages[3].blocks[0].mlp.fc1.weight, source.stages[3].blocks[0].mlp.fc1.weight)
    torch.testing.assert_close(model.stem.conv.weight, source.stem.conv.weight.sum(1, keepdim=True))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(vision.create_model("caformer_s18", **TINY).state_dict(), path)
    overlay = {"file": str(path), "num_classes": 5}
    with pytest.raises(ValueError, match="no weights of this MetaFormer"):
        vision.create_model("convformer_s18", pretrained=True, pretrained_cfg_overlay=overlay, **TINY)
