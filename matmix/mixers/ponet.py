"""PoNet: global, segment and local pooling, joined by a gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import ColumnCat, Product
from matmix.matrices.base import Matrix
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.low_rank import LowRank
from matmix.matrices.selection import Selection
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding, merge_heads, split_heads
from matmix.mixers.calls import explain
from matmix.mixers.registry import register
from matmix.ops.activations import looked_on
from matmix.ops.layout import image_of
from matmix.ops.linear import linear
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.sizes import known
from matmix.ranges import shown


class Streams(NamedTuple):
    """What the tokens are projected to, ``(B, L, D)`` each."""

    query: Tensor
    gate: Tensor
    key: Tensor
    segment: Tensor
    local: Tensor

    def values(self) -> Tensor:
        """What the matrix multiplies, ``(B, D, 3 L, 1)``."""
        return torch.cat((self.key, self.segment, self.local), 1).mT.unsqueeze(-1)


class Segments(NamedTuple):
    """Which segment each token is in."""

    owner: Tensor  # (B or 1, L) int64, from 0 to total - 1
    total: int
    special: Tensor | None = None  # (B, L) bool: tokens that pool nothing and are not pooled
    size: int | None = None  # tokens of every segment but the last, where they are equal runs in all samples


@register(
    "ponet",
    matrix="[LowRank, Diagonal Selection, Selection] per channel",
    cost="O(L D^2)",
    source="lxchtan/PoNet",
    paper="2110.02442, section 3",
    smallest={"heads": 2, "segments": 3},
)
class PoNet(Mixer):
    """``y_i = (g + s_i) o_i + l_i`` channel by channel: three poolings, the first two gated by the token itself.

    - g, one vector for all tokens: an attention of the mean query, whose values are the keys;
    - s_i, the largest ``segment`` in the segment of token i;
    - l_i, the largest ``local`` among token i and its neighbours (3 tokens; 3 x 3 on an image).

    Each pooling reads a stream of its own, so the matrix is a row of three blocks ``[o a^T, diag(o) S, P]``, where S
    and P select, for every channel, the token that holds the largest value. Linear in L, no position enters.

    Segments are runs of ``L' // segments + 1`` tokens, row by row on an image, hence somewhat longer and fewer than
    ``segments`` says, as in the published code. Here L' is the number of real tokens of a sequence; there it is the
    padded length, so that padding moves the borders. ``mix_segments`` takes segments that are given, sentences say.

    Args:
        heads: number of heads of the global attention.
        segments: number of segments, at most.
        padded_segments: segments from the padded length, as published (the mask is then a promise of content only).
        proj: the output projection; the self-attention of the pretrained models has it outside.
    """

    traits = Traits(data_dependent=True, mask="trim")

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        heads: int = 8,
        segments: int = 64,
        padded_segments: bool = False,
        proj: bool = True,
    ) -> None:
        if padded_segments:
            self.traits = replace(type(self).traits, mask="content")
        super().__init__(dim, grid)
        if dim % heads:
            raise ValueError(f"heads must be a divisor of dim={dim}, got {heads!r}")
        self.heads, self.segments, self.padded_segments = heads, segments, padded_segments
        self.in_proj = nn.Linear(dim, 5 * dim)  # query, gate, key, segment, local
        self.proj = nn.Linear(dim, dim) if proj else None

    def project(self, x: Tensor, context: Context) -> Projected:
        streams = self._streams(x)
        return Projected(ponet(streams, self.heads, self._runs(x, context), context), streams.values())

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        if context.mask is not None or context.own is not None or not known(x.shape[1]):
            return super().product(x, context)
        # Both poolings give the largest values along with their places.
        streams, segments = self._streams(x), self._runs(x, context)
        _, gate, key, segment, local = streams
        weight = _global_weights(streams, self.heads, None)
        assert segments.size is not None
        peak, _ = _largest_of_runs(segment, segments.size)
        top, _ = _largest_around(local, context, None)
        mean = (weight.unsqueeze(2) @ split_heads(key, self.heads)).transpose(1, 2).flatten(2)
        pooled = peak.index_select(1, segments.owner[0]) + mean
        # The gradient of addcmul multiplies by its scalar too: two passes and two tensors more.
        mixed = top + gate * pooled if looked_on(gate) else torch.addcmul(top, gate, pooled)
        return mixed.mT.unsqueeze(-1), None

    def _streams(self, x: Tensor) -> Streams:
        return Streams(*linear(self.in_proj, x).unflatten(-1, (5, self.dim)).unbind(2))

    def _runs(self, x: Tensor, context: Context) -> Segments:
        given: Segments | None = context.own  # of mix_segments
        if given is not None:
            return given
        return runs(x.shape[1], self.segments, None if self.padded_segments else context.mask, x.device)

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        tokens = merge_heads(mixed)
        return tokens if self.proj is None else linear(self.proj, tokens)

    def mix_segments(
        self, x: Tensor, index: Tensor, *, special: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """``forward`` with segments that are given.

        Args:
            x: tokens ``(B, L, D)``.
            index: segment of each token, ``(B, L)`` int64 from 0 to L - 1; see ``delimited``.
            special: ``(B, L)`` bool, tokens that pool nothing but the global part and that nobody pools locally.
            mask: as in ``forward``.

        Raises:
            ValueError: as ``forward`` does, and if ``index`` or ``special`` have another shape, type or device.
        """
        try:
            context = self._context(x, None, mask)
            for word, given, kind in (("index", index, torch.int64), ("special", special, torch.bool)):
                if word == "special" and given is None:
                    continue
                if not isinstance(given, Tensor) or given.dtype != kind or given.shape != x.shape[:2]:
                    raise ValueError(f"PoNet: {word} must be {kind} of shape {tuple(x.shape[:2])}, got {shown(given)}")
            context = context._replace(own=Segments(index, x.shape[1], special))
            out = drop_padding(self.mix(drop_padding(x, mask), context), mask)
        except Exception as error:
            explain(self, error, x, mask=mask, index=index, special=special)
            raise
        return out if out.dtype == x.dtype else out.to(x.dtype)

    @staticmethod
    def _from_published(module: PoNet, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # The LRA code says W_v for the gate and ff for the projection; the pretraining code has dense_*.
        names = [f"dense_{name}" for name in ("q", "o", "k", "segment", "local")]
        if "W_q.weight" in state:
            names = ["W_q", "W_v", "W_k", "W_segment", "W_local"]
        ours = {f"in_proj.{p}": torch.cat([state[f"{n}.{p}"] for n in names]) for p in ("weight", "bias")}
        if module.proj is not None:
            ours |= {f"proj.{p}": state[f"ff.{p}"] for p in ("weight", "bias")}
        return ours

    published: ClassVar[dict[str, Callable[..., Any]]] = {"lxchtan/PoNet": _from_published}


def ponet(streams: Streams, heads: int, segments: Segments, context: Context) -> Matrix:
    """The three poolings as a matrix ``(B, D, L, 3 L)`` on ``streams.values()``."""
    length, mask, special = streams.query.shape[1], context.mask, segments.special
    weight = _global_weights(streams, heads, mask)
    gates = streams.gate.mT
    everywhere = LowRank(gates.unsqueeze(-1), weight.repeat_interleave(gates.shape[1] // heads, 1).unsqueeze(-1))
    own = segments.owner if special is None else segments.owner.masked_fill(special, -1)
    largest = _largest_of_segments(streams.segment, segments, mask)
    _, near = _largest_around(streams.local, context, special)
    spread = Selection(own.unsqueeze(1), segments.total, gates.dtype)
    within = Product((Diagonal(gates), spread, Selection(largest, length, gates.dtype)))
    return ColumnCat((everywhere, within, Selection(near, length, gates.dtype)))


def _global_weights(streams: Streams, heads: int, mask: Tensor | None) -> Tensor:
    """The attention of the mean query, ``(B, H, L)``."""
    query, gate, key, *_ = streams
    dtype, width = working_dtype(query), query.shape[2] // heads
    with full_precision(query.device):
        if mask is None:
            mean = query.to(dtype).mean(1)
        else:
            count = mask.sum(1, keepdim=True).clamp(min=1)
            mean = drop_padding(query, mask).to(dtype).sum(1) / count
        mean, keys = mean.unflatten(-1, (heads, width)), key.to(dtype).unflatten(-1, (heads, width))
        scores = torch.einsum("bhe,blhe->bhl", mean, keys)
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(1), torch.finfo(dtype).min)
        return (scores * width**-0.5).softmax(-1).to(gate.dtype)


def _low(tokens: Tensor, mask: Tensor | None, special: Tensor | None = None) -> Tensor:
    """Tokens ``(B, L, D)`` with the lowest number where they must not be selected."""
    low = torch.finfo(tokens.dtype).min
    tokens = tokens if mask is None else tokens.masked_fill(~mask.unsqueeze(-1), low)
    return tokens if special is None else tokens.masked_fill(special.unsqueeze(-1), low)


def _largest_of_segments(tokens: Tensor, segments: Segments, mask: Tensor | None) -> Tensor:
    """For every segment and channel the token that has the largest value, ``(B, D, segments)``."""
    batch, length, width = tokens.shape
    tokens, count = _low(tokens, mask), segments.total
    if segments.size is not None:
        return _largest_of_runs(tokens, segments.size)[1]
    tokens = tokens.detach()
    index = segments.owner.unsqueeze(-1).expand(batch, length, width)
    largest = tokens.new_full((batch, count, width), -torch.inf).scatter_reduce(1, index, tokens, "amax")
    place = torch.arange(length, device=tokens.device).unsqueeze(-1)
    place = place.masked_fill(tokens != largest.gather(1, index), length - 1)
    return place.new_full((batch, count, width), length - 1).scatter_reduce(1, index, place, "amin").mT


def _largest_of_runs(tokens: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """For every run of ``size`` tokens and channel the largest value ``(B, runs, D)`` and the token that has it, ``(B,
    D, runs)``: pooling of a channels-last row of an image, without a copy."""
    peak, index = F.max_pool2d(tokens.mT.unsqueeze(2), (1, size), (1, size), ceil_mode=True, return_indices=True)
    return peak.squeeze(2).mT, index.squeeze(2)


def _largest_around(tokens: Tensor, context: Context, special: Tensor | None) -> tuple[Tensor, Tensor]:
    """For every token and channel the largest value among its neighbours and itself, ``(B, L, D)``, and the token that
    has it, ``(B, D, L)``."""
    grid = context.grid if len(context.grid) == 2 else (1, *context.grid)
    image = image_of(_low(tokens, context.mask, special), grid)  # channels last, without a copy
    kernel = tuple(3 if n > 1 else 1 for n in grid)
    top, index = F.max_pool2d(image, kernel, 1, tuple(k // 2 for k in kernel), return_indices=True)
    index = index.flatten(2)
    return top.flatten(2).mT, index if special is None else index.masked_fill(special.unsqueeze(1), -1)


def runs(length: int, wanted: int, mask: Tensor | None, device: torch.device) -> Segments:
    """Runs of ``L' // wanted + 1`` tokens, L' the number of real ones."""
    if mask is None:
        size = length // wanted + 1
        index = (torch.arange(length, device=device) // size).unsqueeze(0)
        if not known(length):  # a window of open size is none that an exporter takes; at most `wanted` runs have tokens
            return Segments(index, wanted)
        return Segments(index, -(-length // size), size=size)
    sizes = mask.sum(1, keepdim=True) // wanted + 1
    return Segments((mask.cumsum(1) - 1).clamp(min=0) // sizes, min(wanted, length))


def delimited(tokens: Tensor, delimiters: tuple[int, ...] = (101, 102)) -> tuple[Tensor, Tensor]:
    """Segments between delimiters, as in pretraining: each delimiter is a segment of its own.

    Args:
        tokens: token numbers ``(B, L)``.
        delimiters: their numbers; BERT's [CLS] and [SEP].

    Returns:
        ``index`` (int64) and ``special`` (bool), ``(B, L)`` each, for ``mix_segments``.
    """
    special = torch.isin(tokens, torch.tensor(delimiters, device=tokens.device))
    after = F.pad(special[:, :-1], (1, 0))
    index = (special | after).cumsum(1)  # numbered without gaps, so below L
    return index - index[:, :1], special
