"""The masks of torch's attention: True or -inf hides, as in ``nn.MultiheadAttention``; other numbers are added."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Masks(NamedTuple):
    """What a call hides: keys for every query, what comes later, pairs."""

    keys: Tensor | None = None  # (B, S) bool, True = a real token
    causal: bool = False  # query i sees keys j <= i
    bias: Tensor | None = None  # (B or 1, H or 1, L or 1, S), added to the scores, -inf where a pair is hidden
    words: str | None = None  # where there is a bias: what it is
    hinted: bool = False  # causal by a hint that torch believes


def masks_of(
    where: str, given: dict[str, Any], *, weights: bool, heads: int, batch: int, size: tuple[int, int]
) -> Masks:
    """The masks of a call to ``nn.MultiheadAttention``, read as it reads them.

    Encoder layers make every mask a float one, so a float padding mask of 0 and -inf is one of tokens. Which a mask is
    is looked up in its entries, and that waits for the device. In a compiled call it cannot be: there a padding mask
    and, with ``is_causal=True``, a causal mask are taken for what they should be, and an assertion runs along.

    ``is_causal`` is a hint about ``attn_mask``: torch believes it where it returns no weights and there is no padding
    mask, and goes by ``attn_mask`` elsewhere.

    Args:
        where: the site's name, for errors.
        given: arguments by name, the masks with a batch dimension.
        weights: whether the weights are returned.
        heads, batch: of the call.
        size: queries and keys.

    Raises:
        ValueError: for masks of other types or shapes, and a hint without a mask, with the site's name.
    """
    padding, pairs, hint = given.get("key_padding_mask"), given.get("attn_mask"), bool(given.get("is_causal"))
    if hint and pairs is None:
        raise ValueError(f"{where}: is_causal=True is a hint that attn_mask is the causal mask; attn_mask is None")
    found = Masks()
    if padding is not None:
        _check(where, "key_padding_mask", padding, [(batch, size[1])])
        if _of_tokens(where, padding):
            found = Masks(keys=~_hidden(padding))
        else:
            words = "key_padding_mask adds other numbers than 0 and -inf to scores; a mixer takes a mask of tokens"
            found = Masks(bias=padding[:, None, None, :], words=words)
    if pairs is None:
        return found
    _check(where, "attn_mask", pairs, [size, (batch * heads, *size)])
    if hint and padding is None and not weights:
        return Masks(causal=True, hinted=True)
    if hint and torch.compiler.is_compiling():
        _assert_causal(where, pairs)
        return Masks(found.keys, True, found.bias, found.words)
    nothing, causal = _look(pairs)
    if nothing or causal:
        return Masks(found.keys, causal, found.bias, found.words)
    bias = pairs if pairs.dtype != torch.bool else minus_infinity(pairs, given["query"].dtype)
    bias = bias[None, None] if bias.dim() == 2 else bias.unflatten(0, (batch, heads))
    if found.bias is not None:
        bias = bias + found.bias
    words = f"attn_mask {tuple(pairs.shape)} hides or weighs pairs of tokens; a mixer takes a mask of tokens"
    return Masks(found.keys, False, bias, words)


def future(size: tuple[int, int], device: torch.device) -> Tensor:
    """``(L, S)`` bool, True = a key later than the query, both counted from the first."""
    return torch.ones(size, dtype=torch.bool, device=device).triu(1)


def minus_infinity(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores to hide pairs."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, -torch.inf)


def _check(where: str, name: str, mask: Tensor, shapes: list[tuple[int, ...]]) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"{where}: {name} must be bool (True hides) or floating (added), got {mask.dtype}")
    if tuple(mask.shape) not in shapes:
        allowed = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ValueError(f"{where}: {name} must be {allowed}, got {tuple(mask.shape)}")


def _hidden(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask == -torch.inf


def _of_tokens(where: str, mask: Tensor) -> bool:
    """Whether a padding mask hides a token or does nothing with it, and adds no other number."""
    if mask.dtype == torch.bool:
        return True
    plain = ((mask == 0) | (mask == -torch.inf)).all()
    if not torch.compiler.is_compiling():
        return bool(plain)
    torch._assert_async(plain, f"{where}: a floating key_padding_mask of a compiled call must be of 0 and -inf")
    return True


def _look(mask: Tensor) -> tuple[bool, bool]:
    """Whether a mask of pairs does nothing, and whether it is the causal one; one look at the device."""
    hidden = _hidden(mask)
    plain = hidden.new_ones(()) if mask.dtype == torch.bool else (hidden | (mask == 0)).all()
    right = (hidden == future((mask.shape[-2], mask.shape[-1]), mask.device)).all()
    nothing, causal = torch.stack((plain & ~hidden.any(), plain & right)).tolist()
    return nothing, causal and not nothing


def _assert_causal(where: str, mask: Tensor) -> None:
    later = future((mask.shape[-2], mask.shape[-1]), mask.device)
    right = mask == (later if mask.dtype == torch.bool else minus_infinity(later, mask.dtype))
    torch._assert_async(right.all(), f"{where}: attn_mask of a compiled call with is_causal=True must be causal")
