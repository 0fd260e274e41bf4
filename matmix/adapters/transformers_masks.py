"""Masks as transformers' attention gets them, read as tokens that are seen and causality.

They come as bool ``(B, 1, L, S)``, True = attend; as numbers to add, 0 or the least of their type; as integers or ones
``(B, S)``, 1 = keep; as None, which may mean causal. A mask of pairs that is neither padding nor causality (packed
sequences, a window) stays one of pairs.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Seen(NamedTuple):
    """Which tokens may be seen."""

    keys: Tensor | None = None  # (B or 1, S) bool, True = a token that may be seen
    causal: bool = False  # the last row sees all columns, each row before it one less
    pairs: Tensor | None = None  # (B or 1, H or 1, L, S) bool or added: what neither of the two above can say


# A mask goes to all layers of a model, and reading one asks its numbers (on a GPU: waits for them): the last is kept.
_last: tuple[Any, Any, Seen] | None = None


def read_mask(mask: Any, rows: int, columns: int, causal: bool, where: str) -> Seen:
    """What a mask says.

    Args:
        mask: in any of the forms above, not None.
        rows, columns: queries and keys.
        causal: what is expected of it. While ``torch.compile`` traces nothing can be asked of its numbers: what is
            expected is then believed, and asserted when the graph runs.
        where: the name of the site, for errors.

    Raises:
        ValueError: for a mask of no known form.
    """
    global _last
    if not isinstance(mask, Tensor):
        raise ValueError(f"{where}: a mask must be a tensor, got {type(mask).__name__}")
    if mask.dim() == 2 and mask.shape[1] == columns:
        return Seen(mask != 0)
    sizes = tuple(mask.shape)
    if mask.dim() != 4 or sizes[2] not in (1, rows) or sizes[3] < columns:
        raise ValueError(f"{where}: a mask must be (B, {columns}) or (B, 1, {rows}, {columns}), got {sizes}")
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"{where}: a mask of four axes must be bool or floating, got {mask.dtype}")
    if torch.compiler.is_compiling():
        return _expected(mask[..., :columns], rows, columns, causal, where)
    if mask.is_inference():  # counts no changes
        return _read(mask[..., :columns], rows, columns)
    what = (mask._version, rows, columns)
    if _last is None or _last[0]() is not mask or _last[1] != what:
        seen = _read(mask[..., :columns], rows, columns)
        if seen.pairs is not None:
            return seen  # it holds the mask, which would never go
        _last = (weakref.ref(mask), what, seen)
    return _last[2]


def _allowed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where a mask allows, and whether it does no more than allow and forbid."""
    if mask.dtype == torch.bool:
        return mask, mask.new_ones(())
    forbidden = mask <= torch.finfo(mask.dtype).min / 2  # two masks that were added give -inf
    return ~forbidden, (forbidden | (mask == 0)).all()


def _wanted(allowed: Tensor, rows: int, causal: bool) -> tuple[Tensor, Tensor]:
    """The tokens that are seen, if a mask is of padding and perhaps causal, and whether it is such a mask.

    The last row tells them. Rows of padded queries are not read by anyone; they may see nothing, or all.
    """
    columns = allowed.shape[3]
    keys = allowed[:, 0, -1].clone()  # a view would hold the whole
    wanted = keys[:, None, None]
    if causal:
        past = torch.ones(rows, columns, dtype=torch.bool, device=allowed.device).tril(columns - rows)
        wanted = wanted & past
    fits = (allowed == wanted).all(-1)
    unread = (
        ~keys[:, None, columns - rows :] & (allowed.all(-1) | ~allowed.any(-1)) if columns >= rows else ~fits & fits
    )
    return keys, (fits | unread).all()


def _read(mask: Tensor, rows: int, columns: int) -> Seen:
    allowed, plain = _allowed(mask)
    if bool(plain):
        for causal in (False, True) if mask.shape[2] > 1 else (False,):
            keys, fits = _wanted(allowed, rows, causal)
            if bool(fits):
                return Seen(None if bool(keys.all()) else keys, causal)
    return Seen(pairs=mask)


def _expected(mask: Tensor, rows: int, columns: int, causal: bool, where: str) -> Seen:
    allowed, plain = _allowed(mask)
    causal = causal and mask.shape[2] > 1
    keys, fits = _wanted(allowed, rows, causal)
    kind = "padding and causality" if causal else "padding alone"
    torch._assert_async(plain & fits, f"{where}: compiled for masks of {kind}, and another came")
    return Seen(keys, causal)


def both(one: Seen, other: Seen, where: str) -> Seen:
    """What two masks say together.

    Raises:
        ValueError: for two masks of pairs.
    """
    if one.pairs is not None and other.pairs is not None:
        raise ValueError(f"{where}: the call brings two masks of pairs of tokens")
    keys = one.keys if other.keys is None else other.keys if one.keys is None else one.keys & other.keys
    pairs = other.pairs if one.pairs is None else one.pairs
    return Seen(keys, one.causal or other.causal, pairs)
