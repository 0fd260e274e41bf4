"""The nearest member of each class: against members, against descents, and against itself."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import matmix
from matmix import matrices as m
from matmix.projection import list_projections, project, projection_info, register_projection
from matmix.testing import MatrixCase, close
from tests.projection.families import FAMILIES, LENGTH, Family

EXACT = [family for family in FAMILIES if projection_info(family.name).exact]


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_every_class_is_tested() -> None:
    assert {family.name for family in FAMILIES} == set(list_projections())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_members_come_back_and_nothing_is_nearer(family: Family) -> None:
    with matmix.fork_seed(0, str(family)):
        members = torch.stack([family.build(*family.draw()).detach() for _ in range(100)]).unsqueeze(1)
        back = project(members, family.spec, grid=family.grid)
        assert float(back.error.max()) < 1e-12
        close(back.matrix.to_dense(), members, "members", tolerance=1e-11)
        target = torch.randn(LENGTH, LENGTH, dtype=torch.float64)
    found = project(target, family.spec, grid=family.grid)
    if family.scales:  # the best multiple of each member
        members = members * ((members * target).sum((2, 3)) / members.square().sum((2, 3)))[..., None, None]
    assert float(found.error) * target.norm() <= (members - target).flatten(1).norm(dim=1).min() + 1e-12
    close(found.error[0, 0], (found.matrix.to_dense()[0, 0] - target).norm() / target.norm(), "error")
    values = noise(2, 3, LENGTH, 4)
    close(found.matrix.matmul(values), found.matrix.to_dense() @ values, "fast product")
    again = project(found.matrix, family.spec, grid=family.grid)
    close(again.matrix.to_dense(), found.matrix.to_dense(), "projected twice", tolerance=1e-11)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_optimum_is_that_of_descents_over_the_free_numbers(family: Family) -> None:
    with matmix.fork_seed(1, str(family)):
        target = torch.randn(LENGTH, LENGTH, dtype=torch.float64)
        best = family.nearest(target)
    found = project(target, family.spec, grid=family.grid)
    ours, theirs = (float((entries - target).norm()) for entries in (found.matrix.to_dense()[0, 0], best))
    if found.exact:
        assert ours <= theirs * (1 + 1e-9)
        close(found.matrix.to_dense()[0, 0], best, "the nearest member", tolerance=1e-3)
    assert ours <= 1.05 * theirs


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_free_numbers_are_the_dimension_of_the_class(family: Family) -> None:
    """The rank of the map from numbers to entries, at a random place."""
    with matmix.fork_seed(2, str(family)):
        numbers = family.draw()
    jacobian = torch.autograd.functional.jacobian(family.build, tuple(numbers))
    flat = torch.cat([part.reshape(LENGTH * LENGTH, -1) for part in jacobian], 1)
    found = project(noise(LENGTH, LENGTH), family.spec, grid=family.grid)
    assert found.parameters == int(torch.linalg.matrix_rank(flat, rtol=1e-9))


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_batch_is_as_one_by_one_in_either_precision(family: Family) -> None:
    entries = noise(3, 2, LENGTH, LENGTH)
    entries[1, 1] = 0
    whole = project(entries, family.spec, grid=family.grid)
    assert tuple(whole.matrix.shape) == tuple(entries.shape) and tuple(whole.error.shape) == (3, 2)
    for sample in range(3):
        for head in range(2):
            one = project(entries[sample, head], family.spec, grid=family.grid)
            close(whole.matrix.to_dense()[sample, head], one.matrix.to_dense()[0, 0], "entries", scale=1.0)
            close(whole.error[sample, head], one.error[0, 0], "error", scale=1.0)
    single = project(entries.float(), family.spec, grid=family.grid)
    assert single.matrix.dtype == single.error.dtype == single.matrix.to_dense().dtype == torch.float32
    close(single.error, whole.error, "error in float32", scale=1.0)
    assert project(entries.bfloat16(), family.spec, grid=family.grid).matrix.dtype == torch.float32
    assert tuple(project(entries[:0], family.spec, grid=family.grid).matrix.shape) == (0, 2, 6, 6)
    shown, kept = project(entries, family.spec, grid=family.grid), whole.matrix.to_dense().clone()
    entries.zero_()
    close(shown.matrix.to_dense(), kept, "after the matrix given was overwritten")


@pytest.mark.parametrize("grid", [(24,), (4, 6), (1,), (2, 1)], ids=str)
@pytest.mark.parametrize("name", list_projections())
def test_larger_classes_are_never_farther(name: str, grid: tuple[int, ...]) -> None:
    """Every size that a class proposes is possible, and each holds the ones before."""
    entries = noise(1, 3, *2 * (torch.Size(grid).numel(),))
    specs = projection_info(name).specs(grid)
    found = [project(entries, spec, grid=grid) for spec in specs]
    assert found and all(float(p.error.min()) >= 0 for p in found)
    for small, large in pairwise(found):
        assert bool((large.error <= small.error + 1e-12).all()) and large.parameters > small.parameters


EXAMPLES = [
    (m.Identity, "identity"), (m.Diagonal, "diagonal"), (m.Banded, "banded(7)"), (m.Toeplitz, "toeplitz"),
    (m.CausalToeplitz, "causal_toeplitz"), (m.DecayingToeplitz, "causal_toeplitz"), (m.Circulant, "circulant"),
    (m.Convolution, "convolution(5)"), (m.LowRank, "low_rank(3)"), (m.Monarch, "monarch(3, 5)"), (m.Kron, "kron"),
    (m.ChunkDiagonal, "block_diagonal(4)"), (m.Softmax, "row_stochastic"), (m.UnitLowerInverse, "causal"),
    (m.Semiseparable, "semiseparable(4)"), (m.DiagonalSemiseparable, "semiseparable(4)"),
    (m.GatedSemiseparable, "semiseparable(4)"), (m.GeneralSemiseparable, "semiseparable(3)"),
    (m.Quasiseparable, "quasiseparable(4)"), (m.GeneralQuasiseparable, "quasiseparable(3)"),
]  # fmt: skip
FLAT = (m.Banded,)  # examples that know no image


@pytest.mark.parametrize(("cls", "spec"), EXAMPLES, ids=lambda value: getattr(value, "__name__", value))
def test_matrices_of_our_own_come_back(cls: type[matmix.Matrix], spec: str) -> None:
    case = MatrixCase(cls, grid=(3, 5))
    matrix = case.make()
    found = project(matrix, spec, grid=None if cls in FLAT else case.grid)
    assert float(found.error.max()) < 1e-12
    close(found.matrix.to_dense(), matrix.to_dense().expand(found.matrix.shape), spec)


@pytest.mark.parametrize(
    ("shape", "spec", "grid", "words"),
    [
        ((6, 6), "toeplits", None, "toeplitz"),
        ((6, 6), "toeplitz, diagonal", None, "takes one"),
        ((6, 6), "low_rank", None, "needs rank"),
        ((6, 6), "low_rank(7)", None, "from 1 to 6 here, got 7"),
        ((6, 6), "low_rank(2, 3)", None, "takes rank"),
        ((6, 6), "low_rank(2, rank=3)", None, "given twice"),
        ((6, 6), "low_rank(order=3)", None, "'order'; known: rank"),
        ((6, 6), "low_rank(2.0)", None, "whole number"),
        ((6, 6), "banded(width=2)", None, "odd whole number from 1 to 11"),
        ((6, 6), "diagonal(3)", None, "no options"),
        ((6, 6), "kron(2, 4)", None, "product 6, got 2, 4"),
        ((6, 6), "kron(2)", None, "product 6"),
        ((6, 6), "block_diagonal(0)", None, "from 1 to 6"),
        ((6, 6), "semiseparable(4)", None, "from 1 to 3"),
        ((6, 6), "quasiseparable(0)", None, "from 1 to 3"),
        ((6, 6), "quasiseparable(1, sweeps=-1)", None, "sweeps must be a whole number from 0"),
        ((6, 6), "toeplitz", (2, 2), "6 x 6"),
        ((6, 5), "toeplitz", None, "must be square for toeplitz, got 6 x 5"),
        ((6, 5), "low_rank(2)", (5,), "6 x 5"),
        ((1, 6, 6), "toeplitz", None, "(1, 6, 6)"),
        ((0, 0), "toeplitz", None, "(0, 0)"),
    ],
)  # fmt: skip
def test_refusals_name_what_is_allowed(shape: tuple[int, ...], spec: str, grid: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        project(noise(*shape), spec, grid=grid)
    assert words in str(refusal.value)


def test_only_finite_real_matrices_have_a_nearest() -> None:
    entries = noise(4, 4)
    entries[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"must be finite, got .* with 1 entries"):
        project(entries, "toeplitz")
    with pytest.raises(ValueError, match="must be floating point"):
        project(torch.eye(3, dtype=torch.long), "toeplitz")
    with pytest.raises(ValueError, match=r"must be a tensor .*, got list"):
        project([[1.0]], "toeplitz")  # type: ignore[arg-type]


def test_rectangular_matrices_where_the_class_has_them() -> None:
    entries = noise(2, 1, 5, 8)
    for spec in ("dense", "uniform", "equal_rows", "row_stochastic", "low_rank(3)"):
        found = project(entries, spec)
        assert tuple(found.matrix.shape) == (2, 1, 5, 8) and bool((found.error < 1.5).all())
    singular = torch.linalg.svdvals(entries)
    tail = singular[..., 3:].norm(dim=-1) / singular.norm(dim=-1)
    close(project(entries, "low_rank(3)").error, tail, "what is left of the singular values")


def test_a_class_of_a_users_own() -> None:
    @register_projection("mirrored", parameters="L (L + 1) / 2", cost="O(L^2 W)")
    def mirrored(entries: Tensor, grid: tuple[int, ...]) -> tuple[matmix.Matrix, int]:
        """Matrices that are their own transpose."""
        length = entries.shape[-1]
        return m.Dense((entries + entries.mT) / 2), length * (length + 1) // 2

    try:
        assert "mirrored" in list_projections()
        info = projection_info("mirrored")
        assert info.specs(8) == ["mirrored"] and info.summary == "Matrices that are their own transpose."
        entries = noise(4, 4)
        found = project(entries, "mirrored")
        close(found.error[0, 0], (entries - entries.mT).norm() / 2 / entries.norm(), "error")
        assert "mirrored, 1x1x4x4, free numbers: 10" in repr(found)
        with pytest.raises(ValueError, match="'mirrored' is taken by"):
            register_projection("mirrored", parameters="", cost="")(lambda entries, grid: (m.Dense(entries), 1))
    finally:
        from matmix.projection import base

        base._REGISTRY.pop("mirrored")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_on_a_gpu_as_on_the_cpu(family: Family) -> None:
    entries = noise(2, 2, LENGTH, LENGTH)
    here, there = (project(entries.to(device), family.spec, grid=family.grid) for device in ("cpu", "cuda"))
    assert there.matrix.to_dense().device.type == "cuda"
    close(there.matrix.to_dense().cpu(), here.matrix.to_dense(), "entries")
