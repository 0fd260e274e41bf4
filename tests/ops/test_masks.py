"""Padding and packing."""

from __future__ import annotations

import pytest
import torch

from matmix.ops.masks import continued, forgetting, packed_segments, padding_first, runs


def test_cumulative_lengths_become_segments() -> None:
    lengths = torch.tensor([0, 3, 3, 4, 6], dtype=torch.int32)  # the second sequence is empty
    assert packed_segments(lengths).tolist() == [[0, 0, 0, 2, 3, 3]]
    assert packed_segments(lengths, 6).tolist() == packed_segments(lengths).tolist()
    with pytest.raises(ValueError, match="cu_seqlens must be integers"):
        packed_segments(lengths.float())


def test_a_number_that_comes_again_is_another_segment() -> None:
    assert runs(torch.tensor([[5, 5, 2, 5], [1, 1, 1, 1]])).tolist() == [[0, 0, 1, 2], [0, 0, 0, 0]]
    decay = forgetting(torch.zeros(1, 2, 3), torch.tensor([[0, 0, 1], [0, 1, 1]]))
    assert decay.isinf().tolist() == [[[False, False, True]] * 2, [[False, True, False]] * 2]


def test_padding_goes_to_the_front_and_back() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()
    order, back = padding_first(mask)
    assert mask.gather(1, order).tolist() == [[False, False, True, True], [False, True, False, True], [False] * 4]
    place = torch.arange(4).expand(3, -1)
    assert place.gather(1, order).gather(1, back).equal(place)


def test_padding_does_not_part_the_past_from_the_tokens() -> None:
    past, tokens = torch.tensor([[[8.0], [9.0]]] * 2), torch.tensor([[[0.0], [1.0], [2.0]], [[0.0]] * 3])
    mask = torch.tensor([[0, 1, 1], [0, 0, 0]]).bool()
    joined = continued(past, tokens, mask).squeeze(-1)
    assert joined.tolist() == [[0, 8, 9, 1, 2], [0, 0, 0, 8, 9]]
