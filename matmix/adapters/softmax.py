"""What adapters of softmax attention share: masks as they arrive, heads, the Softmax matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from matmix.matrices.softmax import Softmax


def softmax_of(
    query: Tensor,
    key: Tensor,
    *,
    factor: float | None = None,
    attn_mask: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
) -> Softmax:
    """The probabilities of ``scaled_dot_product_attention`` as a matrix.

    Args:
        query, key: ``(B, H, L, E)``.
        factor: on the scores; None is ``E ** -0.5``.
        attn_mask: bool, True = may be seen, or added to the scores; ``(L, S)`` up to ``(B, H, L, S)``. One of tokens
            becomes the mask of the matrix, any other its bias, -inf where bool says no.
        bias: of positions, added to the scores.
        causal: row i sees columns j <= i.
    """
    both, keys = bias, None
    if attn_mask is not None and (keys := keys_of(attn_mask)) is None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device).masked_fill(
                ~attn_mask, -torch.inf
            )
        both = attn_mask if both is None else both + attn_mask
    if both is not None:
        both = both[(None,) * (4 - both.dim())].expand(-1, -1, query.shape[2], key.shape[2])
    return Softmax(query, key, keys, both, factor=factor, causal=causal)


def keys_of(attn_mask: Tensor) -> Tensor | None:
    """A bool mask ``(B or 1, 1, 1, S)`` as one of tokens ``(B or 1, S)``; None for one that hides pairs, or weighs."""
    if attn_mask.dtype != torch.bool or attn_mask.dim() != 4 or attn_mask.shape[1:3] != (1, 1):
        return None
    return attn_mask[:, 0, 0]


def heads_of(tokens: Tensor, heads: int) -> Tensor:
    """Tokens ``(B, L, H*W)`` as ``(B, H, L, W)``."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
