"""Parameters and multiply-accumulates equal the published ones, to the digit they are printed with.

The rows of the MetaFormer repositories come from a fixture (counted with PyTorch's counter on the published classes,
three decimals of a G); those of other families stand in ``OTHERS``: to join, add rows.

Two conventions of the published counters differ from ``matmix.cost``'s and are taken out here: they leave average
pooling out, and they count the product of a real and a complex number, by which dynamic filters are mixed, once.
FFTs are no multiply-accumulates and stand apart in both.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

import vision
from matmix.cost import CostReport, count
from matmix.mixers.dynamic_filter import DynamicFilter
from matmix.mixers.inception import Inception
from matmix.mixers.pooling import Pooling
from matmix.ops.reparam import BranchedConv
from tests.fixtures import ROOT

# Published name -> ours, where they differ.
OURS = {"mlp_mixer_b16(org)": "mlp_mixer_b16", "iformer_small": "inception_former_s",
        "iformer_base": "inception_former_b", "iformer_large": "inception_former_l"}  # fmt: skip


def fixture_rows() -> list[tuple[str, int, int, float, int]]:
    """Model, resolution, trainable parameters, MACs in G, decimals of these."""
    rows = []
    for entry in json.loads((ROOT / "vision" / "param_counts_metaformer.json").read_text())["models"]:
        name = OURS.get(entry["model"], entry["model"])
        if name in vision.list_models():
            rows.append((name, entry["resolution"], entry["num_params_trainable"], entry["macs_g"], 3))
    return rows


# Families whose counts no fixture holds: the same columns, parameters as counted on the published classes, MACs as
# counted there or as printed; None where neither is at hand.
OTHERS: list[tuple[str, int, int, float | None, int]] = [
    ("gfnet_ti", 224, 7511784, 1.27, 2),
    ("gfnet_xs", 224, 15985768, 2.83, 2),
    ("gfnet_s", 224, 24869608, 4.45, 2),
    ("gfnet_b", 224, 43120616, 7.89, 2),
    ("gfnet_h_ti", 224, 15085096, 2.04, 2),
    ("gfnet_h_s", 224, 32162632, 4.58, 2),
    ("gfnet_h_b", 224, 53744200, 8.51, 2),
    ("affnet_et", 256, 1436264, 0.4, 1),
    ("affnet_t", 256, 2654232, 0.8, 1),
    ("affnet", 256, 5568696, 1.5, 1),
    ("activemlp_xt", 224, 15349128, None, 0),
    ("activemlp_t", 224, 27152232, None, 0),
    ("activemlp_s", 224, 38631448, None, 0),
    ("activemlp_b", 224, 52154792, None, 0),
    ("activemlp_l", 224, 76238032, None, 0),
    # FFNet's are printed for the folded net; with its batch norms and side branches it has 0.02 % more.
    ("ffnet_1", 256, 13775656, 2.985, 3),
    ("ffnet_2", 256, 27208408, 6.0, 1),
    ("ffnet_3", 256, 48817896, 10.1, 1),
    ("ffnet_4", 384, 79868968, 43.1, 1),
    ("ffnet_seg", 224, 67210088, None, 0),
]

ROWS = fixture_rows() + OTHERS
QUICK = ("identityformer_s12", "randformer_s12", "poolformer_s12", "poolformerv2_s12", "caformer_s18", "dfformer_s18",
         "dfformer_s18_afno", "gfformer_s18", "raftmlp_s", "gfnet_ti", "activemlp_xt")  # fmt: skip


def built(name: str, size: int) -> tuple[torch.nn.Module, CostReport]:
    """The model without numbers, and what a forward of one image costs."""
    own = vision.model_info(name).cfg["input_size"][-1]
    with torch.device("meta"):
        model = vision.create_model(name, **({} if size == own else {"img_size": size}))
        return model, count(model, torch.empty(1, 3, size, size))


def only_ours(model: torch.nn.Module) -> int:
    """What ``matmix.cost`` counts and the published counters do not (see the head of this file)."""
    extra = 0
    for mixer in model.modules():
        grid: Any = getattr(mixer, "grid", None)
        if isinstance(mixer, Pooling):
            extra += mixer.window**2 * math.prod(grid) * mixer.dim
        elif isinstance(mixer, DynamicFilter):
            rows, columns, filters, _ = mixer.complex_weights.shape
            extra += rows * columns * filters * mixer.pwconv1.out_features
        elif isinstance(mixer, Inception) and mixer.pool > 1:
            extra += math.prod(grid) * mixer.low
    return extra


@pytest.mark.parametrize(
    ("name", "size", "parameters", "macs", "decimals"),
    [
        pytest.param(
            *row, marks=() if row[0] in QUICK and row[1] in (224, 256) else pytest.mark.slow, id=f"{row[0]}-{row[1]}"
        )
        for row in ROWS
    ],
)
def test_cost(name: str, size: int, parameters: int, macs: float | None, decimals: int) -> None:
    model, report = built(name, size)
    assert report.trainable == parameters
    assert not report.uncounted
    if macs is not None:
        assert abs((report.macs - only_ours(model)) / 1e9 - macs) <= 0.5 * 10**-decimals * 1.01


def test_the_table_covers_the_families() -> None:
    """Every published size that has a count is compared: the fixture's names that we do not have are ablations."""
    names = {row[0] for row in ROWS}
    assert {"caformer_b36", "cdfformer_m36", "poolformer_m48", "randformer_s24", "metaformer_ppaa_s12_224"} <= names
    missing = {
        OURS.get(entry["model"], entry["model"])
        for entry in json.loads((ROOT / "vision" / "param_counts_metaformer.json").read_text())["models"]
    } - set(vision.list_models())
    # What we have under other names or not at all: RaftMLP's ablations, and iFormer built for 384 pixels.
    assert {name.split("_")[0] for name in missing} <= {"raftmlp", "iformer"}, missing
    families = {"gfnet", "affnet", "activemlp", "ffnet", "raftmlp", "mlp", "inception"}
    assert families <= {name.split("_")[0] for name in names}


def test_frozen_matrices_are_no_parameters() -> None:
    """ "11.9 + 0.2 M" of the paper: RandFormer's matrices are counted apart, as buffers."""
    with torch.device("meta"):
        model = vision.create_model("randformer_s12")
    frozen = sum(b.numel() for name, b in model.named_buffers() if name.endswith("random_matrix"))
    assert frozen == 12127010 - 11891712


def test_side_branches_are_what_separates_ffnet_seg_from_its_published_count() -> None:
    """10.7 G are counted with every branch of a convolution run by itself, which ours does in training only."""
    model, report = built("ffnet_seg", 224)
    beside = 0

    def note(conv: BranchedConv, inputs: object, out: torch.Tensor) -> None:
        nonlocal beside
        weights = [conv.get_submodule(name).c.weight for name in conv.names]
        beside += out[0].numel() * sum(weight[0].numel() for weight in weights[1:])

    for conv in model.modules():
        if isinstance(conv, BranchedConv):
            conv.register_forward_hook(note)
    model.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    assert round((report.macs + beside) / 1e9, 1) == 10.7 != round(report.macs / 1e9, 1)


def test_ffts_stand_apart() -> None:
    report = built("dfformer_s18", 224)[1]
    assert 0.1e9 < report.fft_flops < 0.2e9
    assert built("caformer_s18", 224)[1].fft_flops == 0


@pytest.mark.parametrize(("name", "printed"), [("poolformer_m48", 11.6), ("poolformerv2_m48", 11.6)])
def test_with_pooling_the_figure_of_the_readme(name: str, printed: float) -> None:
    """The largest PoolFormers are printed as 11.6 G, which counts their pooling as we do."""
    assert round(built(name, 224)[1].macs / 1e9, 1) == printed
