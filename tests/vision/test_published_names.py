"""Every family takes the names and shapes of the published code, all of them and no others.

The names were read from models that the published code built (``source`` in every fixture says where). Without numbers:
outputs are compared in the family's own file.
"""

from __future__ import annotations

import pytest
import torch

import vision
from matmix import load_published
from tests.fixtures import load_fixture

BASELINES, DFFORMER, POOLFORMER = "sail-sg/metaformer", "okojoalg/dfformer", "sail-sg/poolformer"
TOKENMIXERS, RAFT, FFNET, VMAMBA = "microsoft/TokenMixers", "okojoalg/raft-mlp", "ysj9909/FFNet", "MzeroMiko/VMamba"

# Fixture -> our name for that model, and the published code it is from.
CASES = {
    "identityformer_s12_224": ("identityformer_s12", BASELINES),
    "identityformer_s24_names": ("identityformer_s24", BASELINES),
    "randformer_s24_names": ("randformer_s24", BASELINES),
    "poolformerv2_s24_names": ("poolformerv2_s24", BASELINES),
    "convformer_s36_names": ("convformer_s36", BASELINES),
    "caformer_s36_names": ("caformer_s36", BASELINES),
    "caformer_b36_names": ("caformer_b36", BASELINES),
    "dfformer_s36_names": ("dfformer_s36", DFFORMER),
    "dfformer_b36_names": ("dfformer_b36", DFFORMER),
    "cdfformer_s36_names": ("cdfformer_s36", DFFORMER),
    "gfformer_s18_224": ("gfformer_s18", DFFORMER),
    "poolformer_s12_224": ("poolformer_s12", POOLFORMER),
    "poolformer_s36_names": ("poolformer_s36", POOLFORMER),
    "names_metaformer_pppa_s12_224": ("metaformer_pppa_s12_224", POOLFORMER),
    "names_metaformer_ppaa_s12_224": ("metaformer_ppaa_s12_224", POOLFORMER),
    "metaformer_ppff_s12_224": ("metaformer_ppff_s12_224", POOLFORMER),
    "gfnet_ti": ("gfnet_ti", "raoyongming/GFNet"),
    "gfnet_h_ti": ("gfnet_h_ti", "raoyongming/GFNet"),
    "affnet_et": ("affnet_et", TOKENMIXERS),
    "names_activemlp_xt": ("activemlp_xt", TOKENMIXERS),
    "raftmlp_s_224": ("raftmlp_s", RAFT),
    "raftmlp_l_names": ("raftmlp_l", RAFT),
    "names_raftmlp_s_shortcut": ("raftmlp_s", RAFT),
    "mlp_mixer_b16_224": ("mlp_mixer_b16", RAFT),
    "iformer_small_224": ("inception_former_s", "sail-sg/iFormer"),
    "iformer_base_names": ("inception_former_b", "sail-sg/iFormer"),
    "ffnet_1": ("ffnet_1", FFNET),
    "ffnet_seg": ("ffnet_seg", FFNET),
    "names_vmamba_v0_t": ("vmamba_v0_t", VMAMBA),
    "names_vmamba_t_s1l8": ("vmamba_t_s1l8", VMAMBA),
}
# Nobody published code for these.
WITHOUT = {"vim2_t": "MambaMixer/M2", "hydra_vit_b": "goombalab/hydra"}


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes(case: str) -> None:
    fixture, (name, source) = load_fixture(f"vision/{case}"), CASES[case]
    assert fixture.data["source"].startswith(f"{source}@")
    entries = {**fixture.data["parameters"], **fixture.data.get("buffers", {})}
    with torch.device("meta"):
        model = vision.create_model(name, **fixture.data.get("options", {}))
        state = {key: torch.empty([] if shape == "integer" else shape) for key, shape in entries.items()}
    load_published(model, state, source)
    frozen = sum(b.numel() for key, b in model.named_buffers() if key.endswith("random_matrix"))  # a parameter there
    assert sum(p.numel() for p in model.parameters()) + frozen == fixture.data["num_params"]
    with pytest.raises(ValueError, match="missing"):
        load_published(model, {key: value for key, value in state.items() if key != next(iter(state))}, source)
    with pytest.raises(ValueError, match=r"left over|unexpected"):
        load_published(model, state | {"another.weight": torch.empty(3)}, source)


# One of each class, and of each kind of part that is tied to the size.
SIZED = ("identityformer_s12_224", "randformer_s24_names", "gfformer_s18_224", "names_metaformer_ppaa_s12_224",
         "metaformer_ppff_s12_224", "gfnet_ti", "affnet_et", "names_activemlp_xt", "raftmlp_s_224", "mlp_mixer_b16_224",
         "iformer_small_224", "ffnet_1", "names_vmamba_v0_t")  # fmt: skip


@pytest.mark.parametrize("case", SIZED)
def test_weights_of_another_image_size(case: str) -> None:
    """They load where nothing is tied to the size; otherwise the error says what to do."""
    fixture, (name, source) = load_fixture(f"vision/{case}"), CASES[case]
    with torch.device("meta"):
        own, larger = (
            vision.create_model(name, **fixture.data.get("options", {}), **size) for size in ({}, {"img_size": 288})
        )
        entries = {**fixture.data["parameters"], **fixture.data.get("buffers", {})}
        state = {key: torch.empty([] if shape == "integer" else shape) for key, shape in entries.items()}
    ours = own.state_dict()
    if all(ours[key].shape == value.shape for key, value in larger.state_dict().items()):
        load_published(larger, state, source)
        return
    with pytest.raises(ValueError, match=r"img_size=\(288, 288\): .* then call resize_\(\(288, 288\)\)"):
        load_published(larger, state, source)


def test_every_family_with_published_code_is_there() -> None:
    classes = {name: vision.model_info(name) for name in vision.list_models()}
    without = {name for name, info in classes.items() if not info.cls.published}
    assert {classes[name].cls for name in without} == {classes[name].cls for name in WITHOUT}
    assert all(classes[name].source == source for name, source in WITHOUT.items())
    covered = {(classes[name].cls, source) for name, source in CASES.values()}
    published = {(info.cls, info.source) for name, info in classes.items() if name not in without}
    assert published <= covered, published - covered
