"""init="projected": what begins where the old mixer stands on average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from matmix import surgery
from matmix.inspect import matrices
from matmix.projection import project
from tests.surgery.models import CASES

AT = "blocks.0.attn"
NEAREST = {
    "dense": "banded(width=13)",
    "toeplitz": "toeplitz",
    "low_rank(2)": "low_rank(2)",
    "monarch": "monarch",
    "mean_matrix": "banded(width=13)",
    "quasiseparable(order=2)": "quasiseparable(2)",
    "quasiseparable(order=2, causal=True)": "semiseparable(2)",
}


@pytest.mark.parametrize("spec", NEAREST)
def test_a_structure_begins_at_the_projection_of_the_mean(spec: str) -> None:
    model, x = CASES["vit"].model(torch.float64), CASES["vit"].input(torch.float64)
    mean = matrices(model, x)[AT].to_dense().mean(0, keepdim=True)
    report = surgery.replace(model, spec, where=AT, level="matrix", init="projected", batches=[x[:1], x[1:]])
    goal = project(mean, NEAREST[spec])
    shown = matrices(model, x)[AT].to_dense()
    assert torch.allclose(shown, goal.matrix.to_dense(), atol=1e-12)
    away = (shown - mean).norm() / mean.norm()
    assert f"begins {float(away):.1%} from the mean matrix" in str(report)


@pytest.mark.parametrize(
    ("spec", "nearest"),
    [
        ("dense(heads=4)", ""),
        ("global_filter", "circulant"),
        ("monarch(heads=4)", "monarch"),
        ("justdense(heads=4)", ""),
    ],
)
def test_a_mixer_begins_at_the_projection_of_the_mean(spec: str, nearest: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)).double()
    x = torch.randn(3, 4, 4, 5, dtype=torch.float64)
    old = matrices(model, x)["0"].to_dense()
    before = model(x)
    surgery.replace(model, spec, init="projected", batches=[x], example=x)
    goal = project(old, nearest, grid=(4, 5)).matrix.to_dense() if nearest else old
    assert torch.allclose(matrices(model, x)["0"].to_dense(), goal, atol=1e-12)
    assert torch.allclose(model(x), before) == (not nearest)


@pytest.mark.parametrize("level", ["matrix", "module"])
def test_what_cannot_begin_at_a_matrix_is_refused(level: str) -> None:
    model, x = CASES["vit"].model(), CASES["vit"].input()
    refused = {
        "matrix": ("linear", "low_rank(data_dependent=True)", "quasiseparable", "random"),
        "module": ("hydra", "toeplitz"),
    }
    for spec in refused[level]:
        with pytest.raises(ValueError, match=rf"{AT}: .* cannot begin at a matrix.* these can: .*dense"):
            surgery.replace(model, spec, where=AT, level=level, init="projected", batches=[x])
    with pytest.raises(ValueError, match="give batches="):
        surgery.replace(model, "dense", level=level, init="projected")
    assert not any("matmix" in type(module).__module__ for module in model.modules())
