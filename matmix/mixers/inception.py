"""Inception mixer: some channels are convolved, some max pooled, some attend (iFormer)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.algebra import HeadCat, Product
from matmix.matrices.base import Matrix
from matmix.matrices.convolution import Convolution
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.selection import Selection
from matmix.matrices.softmax import Softmax
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits, drop_padding
from matmix.mixers.calls import check_axes
from matmix.mixers.registry import register
from matmix.ops.activations import gelu
from matmix.ops.depthwise import conv
from matmix.ops.effective import depthwise_of
from matmix.ops.layout import image_of
from matmix.ops.linear import linear
from matmix.ops.plain import is_plain
from matmix.ops.precision import working_dtype
from matmix.ops.reparam import depthwise

_POINTWISE = ("high_mixer.conv1.weight", "high_mixer.proj2.weight", "proj.weight")


class _Rest(NamedTuple):
    grid: Grid  # (rows, columns); a sequence is one row
    mask: Tensor | None
    bias: Tensor | None = None  # of the convolution, where the product does not have it yet


class _Cells(NamedTuple):
    """Cells of tokens."""

    owner: Tensor  # (L,), the cell of every token
    counts: Tensor  # (1 or B, cells), real tokens in each
    mask: Tensor | None

    @classmethod
    def of(cls, x: Tensor, rest: _Rest, pool: int) -> tuple[Self, Tensor]:
        """The cells of a grid, ``pool`` tokens a side, and the means ``(B, cells, C)`` of tokens that are zero at
        padding."""
        grid, mask, _ = rest
        size = (min(pool, grid[0]), min(pool, grid[1]))
        means = _means(x, grid, size)
        rows, columns = (torch.arange(n, device=x.device) // k for n, k in zip(grid, size, strict=True))
        owner = (rows.unsqueeze(1) * -(-grid[1] // size[1]) + columns).flatten()
        counts = x.new_zeros(1, means.shape[1]).index_add(1, owner, torch.ones_like(owner, dtype=x.dtype).unsqueeze(0))
        if mask is not None:
            # A mean over all positions of a cell becomes one over its real ones.
            share = _means(mask.unsqueeze(-1).to(working_dtype(x)), grid, size)
            counts = share.squeeze(-1).to(x.dtype) * counts
            means = means / share.masked_fill(share == 0, 1).to(means.dtype)
        return cls(owner, counts, mask), means

    def around(self, matrix: Matrix) -> Product:
        """A matrix over cells as one over tokens: it takes the mean of each, and copies to its tokens."""
        spread = Selection(self.owner.view(1, 1, -1), self.counts.shape[1], self.counts.dtype)
        # The mean over a cell of what was copied to its tokens is what was copied.
        factors: list[Matrix] = [spread, matrix, Diagonal(1 / self.counts.clamp(min=1).unsqueeze(1)), spread.mT]
        if self.mask is not None:
            factors.append(Diagonal(self.mask.to(self.counts.dtype).unsqueeze(1)))
        return Product(tuple(factors))


class _High(nn.ModuleDict):
    """The layers of the convolved and the pooled channels, by their published names; a container, which has no call."""

    def __init__(self, part: int, conv: type[nn.Conv1d] | type[nn.Conv2d]) -> None:
        super().__init__()
        self.conv1 = nn.Linear(part, 2 * part, bias=False)
        self.proj1 = conv(2 * part, 2 * part, 3, groups=2 * part, bias=False)
        self.proj2 = nn.Linear(part, 2 * part)


class _Low(nn.ModuleDict):
    """The layer of the attending channels."""

    def __init__(self, low: int, bias: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(low, 3 * low, bias=bias)


@register(
    "inception",
    matrix="Convolution, Selection or pooled Softmax per channel",
    cost="O(L D^2 + (L / pool^axes)^2 D)",
    source="sail-sg/iFormer",
    paper="2205.12956, equations 3 to 6",
    smallest={"head_dim": 4},
)
class Inception(Mixer):
    """Three mixers side by side on the channels, and a fusion (iFormer).

    The last ``heads * head_dim`` channels attend to each other, over cells of ``pool`` tokens a side:
    averaged before, copied back to their tokens afterwards. Of the others, the first half is widened twofold and
    convolved, the second half max pooled (a matrix that selects one token of the window in every channel).

    ``merge`` is not linear: it applies the GELUs of the first two, widens the pooled channels, lets each token see its
    neighbours once more (a depthwise 3-tap convolution plus identity over all branches) and projects. So the matrix
    shows the three branches, one head a channel, and not the fusion.

    Where the grid is no multiple of ``pool``, the cells at its end are smaller, and the mean is over what is there (the
    published code takes multiples and square images only). With a mask, cells average their real tokens; cells count
    from the first position, so that with ``pool > 1`` padding on the left shifts them.

    Args:
        head_dim: channels of an attention head.
        heads: heads of the attention; what they leave of ``dim`` must be even and positive.
        pool: tokens a side of a cell (2 in the first two stages of iFormer, 1 in the others).
        qkv_bias: biases of queries, keys and values.
    """

    traits = Traits(data_dependent=True, mask="trim")

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        head_dim: int = 32,
        heads: int = 1,
        pool: int = 1,
        qkv_bias: bool = True,
    ) -> None:
        if pool != 1:
            self.traits = replace(type(self).traits, mask="content")
        super().__init__(dim, grid)
        low = heads * head_dim
        half, odd = divmod(dim - low, 2)
        if half < 1 or odd:
            raise ValueError(
                f"heads * head_dim must leave an even, positive number of the dim={dim} channels, "
                f"got {heads} * {head_dim} = {low}"
            )
        self.axes = 1 if self.grid is None else len(self.grid)
        self.head_dim, self.heads, self.pool, self.low, self.part = head_dim, heads, pool, low, half
        kind = nn.Conv1d if self.axes == 1 else nn.Conv2d
        self.high_mixer = _High(half, kind)
        self.low_mixer = _Low(low, qkv_bias)
        fused = 4 * half + low
        self.conv_fuse = kind(fused, fused, 3, padding=1, groups=fused, bias=False)
        self.proj = nn.Linear(fused, dim)

    def project(self, x: Tensor, context: Context) -> Projected:
        wide, peak, low, rest = self._streams(x, context)
        _, index = self._max_pool(peak, rest)
        attention, value, cells = self._attention(low, rest)
        kernel, bias = depthwise_of(self.high_mixer.proj1, 2 * self.part, (3,) * self.axes)
        matrices = (
            Convolution.centred(kernel.squeeze(1), context.grid),
            Selection(index, x.shape[1], x.dtype),
            attention if cells is None else cells.around(attention),
        )
        value = value.transpose(1, 2).flatten(2)
        value = value if cells is None else value.index_select(1, cells.owner)
        streams = torch.cat((wide, peak.to(wide.dtype), value), 2).mT.unsqueeze(-1)
        return Projected(HeadCat.of(*matrices, repeats=(1, 1, self.head_dim)), streams, rest._replace(bias=bias))

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, _Rest]:
        # Pooling finds the largest numbers along with their places, and attention is among cells and not tokens.
        wide, peak, low, rest = self._streams(x, context)
        # A bias, which there is none of until the layer is replaced, is in the product here.
        convolved = conv(self.high_mixer.proj1, image_of(wide, rest.grid), [(1, 1)] * self.axes).flatten(2).mT
        pooled, _ = self._max_pool(peak, rest)
        attention, value, cells = self._attention(low, rest)
        attended = attention.matmul(value).transpose(1, 2).flatten(2)
        attended = attended if cells is None else attended.index_select(1, cells.owner)
        return torch.cat((convolved, pooled.to(wide.dtype), attended), 2).mT.unsqueeze(-1), rest

    def _streams(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor, _Rest]:
        """Tokens to convolve (widened), to pool and to attend."""
        grid = context.grid
        check_axes(self, grid)
        rest = _Rest(grid if self.axes == 2 else (1, *grid), context.mask)
        wide, peak, low = x.split((self.part, self.part, self.low), 2)
        return self.high_mixer.conv1(wide), peak, low, rest

    def _max_pool(self, x: Tensor, rest: _Rest) -> tuple[Tensor, Tensor]:
        """The largest of three tokens a side in every channel, and where it stands ``(B, C, L)``."""
        grid, mask, _ = rest
        real = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), -torch.inf)
        window = (1, 3) if self.axes == 1 else (3, 3)
        pooled, index = F.max_pool2d(
            image_of(real, grid), window, 1, (window[0] // 2, window[1] // 2), return_indices=True
        )
        # Only padding can see nothing but padding.
        return drop_padding(pooled.flatten(2).mT, mask), index.flatten(2)

    def _attention(self, x: Tensor, rest: _Rest) -> tuple[Softmax, Tensor, _Cells | None]:
        """The attention among cells, their values ``(B, heads, cells, head_dim)``, and what the cells are; None where
        each token is one."""
        cells, real, tokens = None, rest.mask, x
        if self.pool > 1:
            cells, tokens = _Cells.of(x, rest, self.pool)
            real = None if rest.mask is None else cells.counts > 0
        query, key, value = (
            self.low_mixer.qkv(tokens).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        )
        return Softmax(query, key, real), value, cells

    def merge(self, mixed: Tensor, rest: _Rest) -> Tensor:
        convolved, pooled, attended = mixed.squeeze(-1).mT.split((2 * self.part, self.part, self.low), 2)
        convolved = convolved if rest.bias is None else convolved + rest.bias
        widened = self.high_mixer.proj2(pooled)
        # In place where proj2 is nothing but its weights; a hook or an adapter on it may keep its output.
        widened = gelu(widened) if is_plain(self.high_mixer.proj2, nn.Linear) else F.gelu(widened)
        z = drop_padding(torch.cat((F.gelu(convolved), widened, attended), 2), rest.mask)
        return linear(self.proj, self._fused(z, rest.grid))

    def _fused(self, z: Tensor, grid: Grid) -> Tensor:
        """Tokens and their neighbours."""
        layer, image = self.conv_fuse, image_of(z, grid)
        kind: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv1d if self.axes == 1 else nn.Conv2d
        if not is_plain(layer, kind) or layer.bias is not None:
            return z + conv(layer, image, axes=self.axes).flatten(2).mT
        # The centre tap of the kernel takes the identity in.
        centre = torch.zeros_like(layer.weight[0, 0])
        centre[(1,) * self.axes] = 1
        return depthwise(image, layer.weight + centre, None).flatten(2).mT

    def resize_(self, grid: Grid) -> Self:
        check_axes(self, grid)
        return super().resize_(grid)

    def extra_repr(self) -> str:
        options = f"head_dim={self.head_dim}, heads={self.heads}, pool={self.pool}"
        return f"{super().extra_repr()}, {options}"

    # Published linear maps of the channels are 1 x 1 convolutions.
    published: ClassVar[dict[str, Any]] = {
        "sail-sg/iFormer": lambda module, state: {
            name: value.flatten(1) if name in _POINTWISE else value for name, value in state.items()
        }
    }


def _means(x: Tensor, grid: Grid, size: tuple[int, int]) -> Tensor:
    """Means of tokens ``(B, L, C)`` over cells of the grid, ``(B, cells, C)``."""
    image = F.avg_pool2d(image_of(x, grid), size, ceil_mode=True, count_include_pad=False)
    return image.flatten(2).mT
