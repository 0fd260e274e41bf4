"""The control of order moves real tokens within their sequence, and nothing else."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from matmix.experiments.task import Batch
from sequence.shuffling import shuffled


@given(st.integers(0, 2**16), st.sampled_from(["tokens", "reals", "pairs"]), st.booleans())
def test_real_tokens_move_and_padding_stays(seed, kind, masked):
    generator = torch.Generator().manual_seed(seed)
    shape = {"tokens": (3, 11), "reals": (3, 11, 2), "pairs": (3, 2, 11)}[kind]
    x = torch.randn(shape, generator=generator)
    axes = 3 if kind == "pairs" else 2
    mask = torch.rand(shape[:axes], generator=generator) < 0.6 if masked or kind == "pairs" else None
    (batch,) = shuffled([Batch(x, torch.arange(3), mask)])
    (again,) = shuffled([Batch(x, torch.arange(3), mask)])
    assert torch.equal(batch.x, again.x) and torch.equal(batch.y, torch.arange(3))
    real = torch.ones(shape[:axes], dtype=torch.bool) if mask is None else mask
    assert torch.equal(batch.x[~real], x[~real])
    rows = zip(x.flatten(0, axes - 2), batch.x.flatten(0, axes - 2), real.flatten(0, axes - 2), strict=True)
    for before, after, kept in rows:
        assert torch.equal(before[kept].sort(0).values, after[kept].sort(0).values)
        if kind == "reals":  # channels of a token stay together
            assert {tuple(row) for row in before[kept].tolist()} == {tuple(row) for row in after[kept].tolist()}
    assert not torch.equal(batch.x, x) or real.sum(-1).max() < 2 or masked
