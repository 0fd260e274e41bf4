"""Tokens as images: a view that kernels take for channels-last memory."""

import pytest
import torch

from matmix.ops.layout import image_of


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("grid", [(5, 7), (35,)])
def test_image_of(batch: int, grid: tuple[int, ...]) -> None:
    tokens = torch.randn(batch, 35, 4)
    image = image_of(tokens, grid)
    assert torch.equal(image.flatten(2).mT, tokens) and image.data_ptr() == tokens.data_ptr()
    # What kernels look at, a batch of one included: every stride, in the order of memory.
    assert image.stride() == (140, 1, 4 * grid[-1], 4)
