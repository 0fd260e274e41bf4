"""VMamba against published numbers."""

from __future__ import annotations

import pytest
import torch

import vision
from matmix import load_published
from matmix.inspect import matrices
from tests.fixtures import load_fixture
from vision.models.vmamba import PatchMerging, VMamba

SOURCE = "MzeroMiko/VMamba"


def _tiny() -> VMamba:
    config = load_fixture("vision/vmamba_tiny").config
    assert (config["forward_type"], config["downsample_version"], config["patchembed_version"]) == ("v0", "v1", "v1")
    return vision.create_model(
        "vmamba_v0_t",
        depths=config["depths"],
        dims=[config["dims"] * 2**i for i in range(4)],
        mixers=f"ss2d(expand={config['ssm_ratio']}, d_state={config['ssm_d_state']})",
        mlp_ratio=config["mlp_ratio"],
        num_classes=config["num_classes"],
    ).double()


def test_published_model() -> None:
    case = load_fixture("vision/vmamba_tiny")
    model = load_published(_tiny(), case.state(), source=SOURCE).eval()
    assert sum(p.numel() for p in model.parameters()) == case.data["num_params"]
    case.check(model(case.input()), atol=case.data["tolerance"]["float64_atol"], rtol=0)
    assert len(matrices(model, case.input())) == 5


def test_published_model_of_the_second_generation() -> None:
    """Channels first, a stem of two convolutions, an MLP in every block, a convolution behind every stage."""
    case = load_fixture("vision/vmamba_tiny_v05_noz")
    config = case.config
    mixer = f"ss2d(expand={config['ssm_ratio']}, d_state={config['ssm_d_state']}, out_gate=False, conv_bias=False)"
    model = vision.create_model(
        "vmamba_t_s1l8",
        depths=config["depths"],
        dims=[config["dims"] * 2**i for i in range(4)],
        mixers=mixer,
        mlp_ratio=config["mlp_ratio"],
        num_classes=config["num_classes"],
    )
    state = case.state()
    # Released files of channels-first models keep some linear layers as 1 x 1 convolutions.
    wide = ("fc1.weight", "fc2.weight", "in_proj.weight", "out_proj.weight")
    for entries in (state, {n: v[..., None, None] if n.endswith(wide) else v for n, v in state.items()}):
        load_published(model.double().eval(), entries, source=SOURCE)
        case.check(model(case.input()))


def test_names_of_the_first_checkpoints() -> None:
    state = load_fixture("vision/vmamba_tiny").state()
    old = {}
    for name, value in state.items():
        for new, past in (
            ("patch_embed.0", "patch_embed.proj"),
            ("patch_embed.2", "patch_embed.norm"),
            (".op.", ".self_attention."),
            ("classifier.", ""),
        ):
            name = name.replace(new, past)
        if ".blocks." in name:
            name = name.replace("0.norm.", "0.ln_1.").replace("1.norm.", "1.ln_1.")
        old[name] = value
    one, other = load_published(_tiny(), state, source=SOURCE), load_published(_tiny(), old, source=SOURCE)
    for mine, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("vmamba_v0_t", 23),
        ("vmamba_v0_s", 44),
        ("vmamba_v0_b", 76),
        ("vmamba_t_s2l5", 31),
        ("vmamba_s_s2l15", 50),
        ("vmamba_b_s2l15", 89),
        ("vmamba_t_s1l8", 30),
        ("vmamba_s_s1l20", 49),
        ("vmamba_b_s1l20", 87),
    ],
)
def test_published_sizes(name: str, millions: int) -> None:
    with torch.device("meta"):
        model = vision.create_model(name)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_patch_merging_reads_down_before_right_and_pads_odd_sides() -> None:
    merging = PatchMerging(1, 4)
    merging.norm = torch.nn.Identity()
    merging.reduction.weight.data = torch.eye(4)
    image = torch.arange(1.0, 7).view(1, 2, 3, 1)
    assert merging(image).tolist() == [[[[1, 4, 2, 5], [3, 6, 0, 0]]]]
    assert merging.out_grid((2, 3)) == (1, 2)


def test_options_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="down must be one of 'merge', 'conv', got 'pool'"):
        VMamba(down="pool")
    with pytest.raises(ValueError, match="dims must have an entry per stage"):
        VMamba(depths=(1, 1), dims=(8,))
