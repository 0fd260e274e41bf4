"""Products of one small stack of matrices with many values, without copying the matrices."""

from __future__ import annotations

from torch import Tensor

from matmix.ops.sizes import surely

LONG = 512  # columns from which the samples of one matrix are laid side by side: else its gradient is one a sample


def product(entries: Tensor, values: Tensor) -> Tensor:
    """``entries @ values`` for entries ``(B or 1, H or 1, M, K)`` and values ``(B, H, K, W)``.

    ``torch.matmul`` copies the entries once a sample (or runs one thin product a head) where they are shared; here
    what shares a matrix is laid side by side as more columns.
    """
    shape, (batch, heads, inner, width) = entries.shape, values.shape
    if shape[1] == 1 and heads > 1:
        # Values that come from tokens (B, L, H*W) are a view of them: this puts the tokens back together.
        wide = values.transpose(1, 2).reshape(batch, 1, inner, heads * width)
        return (entries @ wide).squeeze(1).unflatten(-1, (heads, width)).transpose(1, 2)
    if shape[0] == 1 and batch > 1 and (heads > 1 or surely(inner >= LONG)):
        wide = values.permute(1, 2, 0, 3).reshape(heads, inner, batch * width)
        return (entries[0] @ wide).unflatten(-1, (batch, width)).permute(2, 0, 1, 3)
    return entries @ values
