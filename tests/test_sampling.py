"""Orders of examples."""

from __future__ import annotations

import itertools

import pytest
import torch

from matmix.sampling import once, order, stream


def test_an_epoch_has_each_example_once():
    drawn = [index.tolist() for index in itertools.islice(order(10, 3, seed=0), 9)]
    epochs = [list(itertools.chain(*drawn[i : i + 3])) for i in (0, 3, 6)]
    assert all(len(set(epoch)) == 9 for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 3
    assert torch.equal(torch.cat(list(once(10, 4))), torch.arange(10))
    with pytest.raises(ValueError, match="batch_size=11 is larger than the training split of 10"):
        next(order(10, 11, seed=0))
    assert len({stream(a, b) for a in range(40) for b in range(40)}) == 1600
