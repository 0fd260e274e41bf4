"""The descent for matrices of order n: what it promises, and how near it comes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from matmix.projection import project
from matmix.testing import close


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(length: int) -> Tensor:
    """A smooth matrix, wider for later tokens."""
    place = torch.linspace(0, 1, length, dtype=torch.float64)
    return torch.exp(-20 * (place[:, None] - place).abs() ** 1.5 / (1 + place[:, None]))


def bound(target: Tensor, order: int) -> float:
    """No causal matrix of the order is nearer to the lower triangle: the singular values that its worst Hankel block
    has beyond the order."""
    return max(float(torch.linalg.svdvals(target[k:, : k + 1])[order:].norm()) for k in range(target.shape[0]))


@pytest.mark.parametrize("target", [noise(24, 24), kernel(24)], ids=["noise", "kernel"])
@pytest.mark.parametrize("order", [1, 3])
def test_no_sweep_makes_it_worse_and_the_start_is_within_its_bound(target: Tensor, order: int) -> None:
    target = target.tril()
    size = target.norm()
    errors = [float(project(target, f"semiseparable({order}, sweeps={n})").error) * size for n in (0, 1, 2, 4, 8, 50)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0]
    least = bound(target, order)
    assert least <= errors[-1] and errors[0] <= math.sqrt(24) * least


def test_both_triangles_are_problems_of_their_own() -> None:
    entries = noise(2, 2, 17, 17)
    found = project(entries, "quasiseparable(2)").matrix.to_dense()
    lower, upper = (project(part[..., 1:, :-1], "semiseparable(2)").matrix.to_dense() for part in (entries, entries.mT))
    close(found[..., 1:, :-1].tril(), lower, "below the diagonal", tolerance=1e-9)
    close(found.mT[..., 1:, :-1].tril(), upper, "above the diagonal", tolerance=1e-9)
    close(found.diagonal(dim1=2, dim2=3), entries.diagonal(dim1=2, dim2=3), "diagonal")


def descents(target: Tensor, order: int, starts: int, steps: int, seed: int) -> Tensor:
    """Squared errors that L-BFGS over all generators at once ends with, from random starts: (T, starts) for the lower
    triangles of T matrices (T, L, L)."""
    count, length, _ = target.shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(count, starts, length, *size, generator=generator, dtype=torch.float64)

    turns = torch.linalg.qr(draw(order, order)).Q.contiguous()
    numbers = [draw(order) / order**0.5, draw(order) / order**0.5, 0.9 * turns]
    for part in numbers:
        part.requires_grad_()

    def errors() -> Tensor:
        outputs, inputs, transitions = numbers
        reach = inputs[:, :, :1].mT
        total = torch.zeros(count, starts, dtype=torch.float64)
        for i in range(length):
            if i:
                reach = torch.cat((transitions[:, :, i] @ reach, inputs[:, :, i, :, None]), 3)
            row = (outputs[:, :, i, None] @ reach).squeeze(2)
            total = total + (row - target[:, None, i, : i + 1]).square().sum(2)
        return total

    optimiser = torch.optim.LBFGS(numbers, max_iter=steps, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = errors().sum()
        total.backward()
        return total

    optimiser.step(loss)
    return errors().detach()


@pytest.mark.parametrize(
    ("length", "order", "steps"),
    [(12, 2, 200), pytest.param(48, 2, 1500, marks=pytest.mark.slow)],
)
def test_it_comes_within_five_percent_of_the_best_of_twenty_descents(length: int, order: int, steps: int) -> None:
    target = noise(length, length, seed=3)
    triangles = torch.stack((target, target.mT))[:, 1:, :-1]
    best = descents(triangles, order, 20, steps, seed=4).min(1).values.sum().sqrt()
    found = float(project(target, f"quasiseparable({order})").error) * target.norm()
    assert found <= 1.05 * best


def test_what_a_recurrence_cannot_hold_is_measured_too() -> None:
    """The entries above the diagonal are no causal matrix's, and count."""
    target = kernel(16)
    found = project(target, "semiseparable(8)")
    close(found.error[0, 0], target.triu(1).norm() / target.norm(), "error", tolerance=1e-9)
    close(found.matrix.to_dense()[0, 0], target.tril(), "the causal part", tolerance=1e-9)
    assert F.pad(found.matrix.to_dense(), (0, 1)).triu(1).abs().max() == 0
