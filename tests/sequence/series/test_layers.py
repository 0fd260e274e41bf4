"""Parts of time-series models: the matrix that is shown is the one that ran; normalisations go back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from matmix import surgery
from matmix.inspect import record
from matmix.mixers.maps import TokenMap
from matmix.testing import check_mixer
from sequence.series.layers.cross_attention import CrossAttention
from sequence.series.layers.cross_correlation import CrossCorrelation
from sequence.series.layers.decomposition import Decomposition
from sequence.series.layers.downsample import Downsample
from sequence.series.layers.grouped import SeriesPerceptron
from sequence.series.layers.heads import ClassHead, FlattenHead
from sequence.series.layers.inverted import InvertedEmbedding
from sequence.series.layers.large_kernel import LargeKernel
from sequence.series.layers.normalise import InstanceNorm
from sequence.series.layers.patches import PatchEmbedding
from sequence.series.layers.positions import positions
from sequence.series.layers.revin import RevIN
from sequence.series.layers.season_norm import SeasonNorm
from sequence.series.layers.start import marks_of, start_of
from sequence.series.layers.time_linear import TimeLinear
from sequence.series.layers.times_block import TimesBlock
from sequence.series.layers.tokens import CircularConv
from tests.fixtures import load_fixture


def maps(length: int) -> list[tuple[TokenMap, tuple[Tensor, ...]]]:
    """Every map, with the arguments of a call."""
    x = torch.randn(2, length, 5)
    mask = torch.arange(length) < torch.tensor([[length], [max(1, length - 2)]])
    return [
        (CircularConv(5, 8), (x,)),
        (Decomposition(5), (x,)),
        (TimeLinear(length, 4), (x,)),
        (TimeLinear(length, 4, series=5, bias=False), (x,)),
        (InvertedEmbedding(length, 8), (x, torch.randn(2, length, 3))),
        (PatchEmbedding(8, patch=8, stride=7), (x[..., 0],)),
        (FlattenHead(length, 6, 4), (torch.randn(2, 5, length, 6),)),
        (ClassHead(length, 5, 3), (x, mask)),
        (SeasonNorm(5), (x, mask)),
        (SeasonNorm(5), (x,)),
        (CrossCorrelation(6), (torch.randn(2, 4, 6), torch.randn(2, length, 6))),
        *([(TimesBlock(5, 4, periods=3, branches=2, published=p), (x,)) for p in (True, False)] if length > 6 else []),
        (SeriesPerceptron(5, 6, mlp_ratio=2), (torch.randn(2, length, 5, 6),)),
        (Downsample(6, 8, 2), (torch.randn(2, length, 5, 6),)),
        (CrossAttention(6, 2), (torch.randn(2, 4, 6), torch.randn(2, length, 6), mask)),
    ]


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_the_matrix_that_is_shown_is_the_one_that_ran(length: int) -> None:
    torch.manual_seed(0)
    for part, arguments in maps(length):
        part.double()
        arguments = tuple(a.double() if a.is_floating_point() else a for a in arguments)
        ran = part(*arguments)
        matrix, values, rest = part.project(*arguments)
        told = part.merge(matrix.to_dense() @ values, rest)
        torch.testing.assert_close(ran, told, msg=lambda m, p=part: f"{p}: {m}")
        assert part.matrix(*arguments).shape == matrix.shape


def test_a_perceptron_between_series_shows_what_dropout_left() -> None:
    part, x = SeriesPerceptron(5, 6, dropout=0.5).double(), torch.randn(2, 3, 5, 6, dtype=torch.float64)
    torch.manual_seed(0)
    ran = part(x)
    torch.manual_seed(0)
    matrix, values, rest = part.project(x)
    torch.testing.assert_close(part.merge(matrix.to_dense() @ values, rest), ran)
    assert (ran - part.eval()(x)).abs().max() > 1e-3


def test_large_kernels_keep_the_laws() -> None:
    laws = ["product", "gradients", "mask_trim", "mask_content", "length"]
    check_mixer(lambda dim, grid: LargeKernel(dim, grid, kernel=5, small=3), laws=laws)
    with pytest.raises(ValueError, match="small must be odd and at most kernel=3, got 5"):
        LargeKernel(4, kernel=3)


def test_published_decomposition() -> None:
    fixture = load_fixture("time_series/series_decomp_k5")
    fixture.check(torch.stack(Decomposition(5)(fixture.input("x"))))


def test_periods_are_each_samples_own_unless_as_published() -> None:
    """The published TimesNet chooses them by the mean over the batch: a window's output hangs on the other windows."""
    step = torch.arange(24.0)
    waves = torch.stack([torch.sin(2 * torch.pi * step / period) for period in (12, 4)])
    x = (waves.unsqueeze(-1) + torch.tensor([0.0, 0.1])).expand(-1, -1, 2) + 0.01 * torch.randn(2, 24, 2)
    for published in (False, True):
        block = TimesBlock(2, 3, periods=1, branches=2, published=published)
        found = block.found(x)
        assert len(found) == 1 if published else [period for period, _ in found] == [4, 12]
        same = torch.allclose(block(x)[1:], block(x[1:])) and torch.allclose(block(x)[:1], block(x[:1]))
        assert same != published


def test_positions_are_computed_in_float32() -> None:
    table = positions(50, 16, torch.zeros((), dtype=torch.float64))
    assert torch.equal(table, table.float().double())
    assert table[3, 0].item() == pytest.approx(0.14112, abs=1e-6)  # sin 3
    assert positions(3, 7, torch.zeros(())).shape == (3, 7)


@pytest.mark.parametrize("norm", [InstanceNorm(), RevIN(5), RevIN(5, affine=False)])
def test_normalisation_goes_back_and_reads_known_values_only(norm: InstanceNorm) -> None:
    norm = norm.double()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    x = 3 + 2 * torch.randn(2, 30, 5, dtype=torch.float64, requires_grad=True)
    normed, window = norm(x)
    torch.testing.assert_close(norm.undo(normed, window), x, atol=1e-8, rtol=1e-8)
    observed = torch.arange(30).view(1, 30, 1) < torch.tensor([10, 20, 30, 1, 0]).view(1, 1, 5)
    observed = observed.expand(2, -1, -1)
    hidden, known = norm(x.masked_fill(~observed, torch.nan), observed)
    assert hidden.isfinite().all() and known.std[0, 0, 4] == norm.eps**0.5
    short, _ = InstanceNorm()(x[:, :10, :1])  # the first series is known for ten steps
    bare = hidden if getattr(norm, "weight", None) is None else (hidden - norm.bias) / norm.weight
    torch.testing.assert_close(bare[:, :10, :1], short)
    torch.autograd.grad(hidden.sum(), x)


def test_cross_attention_takes_another_matrix_and_drops_entries_of_it() -> None:
    model = nn.ModuleDict({"cross": CrossAttention(8, 2, dropout=0.5)}).double()
    x, memory = torch.randn(2, 5, 8).double(), torch.randn(2, 7, 8).double()
    torch.manual_seed(0)
    ran = model["cross"](x, memory)
    with record(model) as found:
        torch.manual_seed(0)
        torch.testing.assert_close(model["cross"](x, memory), ran)
    kept = found["cross"].to_dense()
    assert kept.shape == (2, 2, 5, 7) and 0.2 < (kept == 0).double().mean() < 0.8
    report = surgery.replace(model, "uniform", where="cross_attention", level="matrix")
    mean = model.eval()["cross"](x, memory)
    torch.testing.assert_close(mean, model["cross"].proj(model["cross"].value(memory).mean(1, keepdim=True)) + 0 * mean)
    report.restore()
    with pytest.raises(ValueError, match="cross: cannot be replaced at level='module': a mixer mixes one sequence"):
        surgery.replace(model, "hydra", where="cross_attention")


def test_what_a_decoder_begins_with() -> None:
    x, marks, future = torch.randn(2, 9, 3), torch.randn(2, 9, 4), torch.randn(2, 5, 4)
    start = start_of(x, 4, 5, None)
    assert torch.equal(start, torch.cat((x[:, 5:], torch.zeros(2, 5, 3)), 1))
    joined = marks_of(marks, future, 4, 5)
    assert joined is not None and torch.equal(joined, torch.cat((marks[:, 5:], future), 1))
    assert marks_of(None, None, 4, 5) is None and marks_of(marks, joined, 4, 5) is joined
    with pytest.raises(ValueError, match="future_marks must be given along with marks"):
        marks_of(marks, None, 4, 5)
    with pytest.raises(ValueError, match=r"future_marks must be \(2, 5 or 9, 4\), got \(2, 3, 4\)"):
        marks_of(marks, future[:, :3], 4, 5)
    with pytest.raises(ValueError, match=r"start must be \(2, known steps \+ 5, 3\), got \(2, 4, 3\)"):
        start_of(x, 4, 5, x[:, :4])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Decomposition(4), "kernel must be an odd number of steps, which keeps the length, got 4"),
        (lambda: PatchEmbedding(4, patch=4, stride=5), "stride from 1 to patch, got patch=4, stride=5"),
        (lambda: PatchEmbedding(4).tokens(7), "length must be at least 8 with patch=16, got 7"),
        (lambda: CrossAttention(6, 4), "heads must be a positive divisor of dim=6, got 4"),
        (lambda: ClassHead(2, 2, 2, act="relu"), "act must be 'gelu' or 'none', got 'relu'"),
    ],
)
def test_what_cannot_be_built_is_said(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()
