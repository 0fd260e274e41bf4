"""Orders of examples."""

from __future__ import annotations

import itertools

import pytest
import torch

from matmix.sampling import by_length, once, once_by_length, order, stream


def test_an_epoch_has_each_example_once():
    drawn = [index.tolist() for index in itertools.islice(order(10, 3, seed=0), 9)]
    epochs = [list(itertools.chain(*drawn[i : i + 3])) for i in (0, 3, 6)]
    assert all(len(set(epoch)) == 9 for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 3
    assert torch.equal(torch.cat(list(once(10, 4))), torch.arange(10))
    with pytest.raises(ValueError, match="batch_size=11 is larger than the training split of 10"):
        next(order(10, 11, seed=0))
    assert len({stream(a, b) for a in range(40) for b in range(40)}) == 1600


LENGTHS = torch.randint(1, 500, (203,), generator=torch.Generator().manual_seed(0))


def test_buckets_hold_similar_lengths_and_what_an_epoch_holds():
    """The very examples of an epoch of `order`, whole, in batches of similar lengths that come in no order."""
    epochs = []
    for seed in (0, 1):
        drawn = list(itertools.islice(by_length(LENGTHS, 8, seed=seed), 50))
        plain = list(itertools.islice(order(203, 8, seed=seed), 50))
        for part in (slice(0, 25), slice(25, 50)):
            epochs.append(torch.cat(drawn[part]).tolist())
            assert sorted(epochs[-1]) == sorted(torch.cat(plain[part]).tolist())
        spread, usual = (sum(int(LENGTHS[b].max() - LENGTHS[b].min()) for b in found) for found in (drawn, plain))
        assert spread < usual / 10
        longest = torch.stack([LENGTHS[b].max() for b in drawn[:25]])
        assert not torch.equal(longest, longest.sort().values)
    assert len(set(map(tuple, epochs))) == 4
    narrow, plain = by_length(LENGTHS, 8, seed=0, among=1), order(203, 8, seed=0)  # batches as they are drawn
    one, other = ({frozenset(b.tolist()) for b in itertools.islice(found, 25)} for found in (narrow, plain))
    assert one == other
    with pytest.raises(ValueError, match="batch_size=204 is larger than the training split of 203"):
        next(by_length(LENGTHS, 204, seed=0))


def test_buckets_go_on_from_any_step_and_are_shared_by_ranks():
    whole = list(itertools.islice(by_length(LENGTHS, 8, seed=3), 60))
    for start in (1, 24, 25, 37):
        for batch, again in zip(whole[start:], by_length(LENGTHS, 8, seed=3, start=start), strict=False):
            assert torch.equal(batch, again)
    shares = [list(itertools.islice(by_length(LENGTHS, 8, seed=3, rank=rank, world=3), 60)) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(torch.cat(parts).tolist()) == sorted(batch.tolist())
    for world in (1, 3):
        seen = [b for rank in range(world) for b in once_by_length(LENGTHS, 8, rank=rank, world=world)]
        assert sorted(torch.cat(seen).tolist()) == list(range(203))
    assert LENGTHS[next(once_by_length(LENGTHS, 8))].min() >= LENGTHS.sort().values[-8]
