"""Raft: perceptrons along the rows and the columns of an image, over bundles of channels (RaftMLP)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.matrices.affine import Affine
from matmix.matrices.algebra import ColumnCat, Kron, Product, Scale, Sum
from matmix.matrices.base import Matrix
from matmix.matrices.dense import Dense
from matmix.matrices.gate import Gate
from matmix.matrices.identity import Identity
from matmix.matrices.normalise import Normalise
from matmix.matrices.permutation import Permutation
from matmix.matrices.selection import Selection
from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.calls import check_axes, check_grid
from matmix.mixers.registry import register
from matmix.ops import interpolate
from matmix.ops.activations import gelu
from matmix.ops.effective import affine_of
from matmix.ops.pieces import pieces
from matmix.ops.plain import is_plain
from matmix.ops.precision import working_dtype

Sides = tuple[interpolate.Sides, interpolate.Sides]  # to the built grid and back


class AxisMLP(nn.Module):
    """``x + W2 gelu(W1 norm(x) + b1) + b2`` along one axis of an image, joint over the ``raft`` channels of a bundle.

    Channel ``g * D / raft + h`` is number g of bundle h, and a perceptron reads the values (g, place on the axis) of
    a bundle at one place of the other axis. Its weights are shared by all bundles and places.
    """

    def __init__(self, dim: int, size: int, raft: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        width = raft * size
        self.raft, self.mlp_ratio, self.drop_path = raft, mlp_ratio, drop_path
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(width, self.hidden(size))
        self.fc2 = nn.Linear(self.hidden(size), width)

    def hidden(self, size: int) -> int:
        """Hidden units for an axis of this size."""
        return int(self.raft * size * self.mlp_ratio)

    def forward(self, image: Tensor, axis: int, keep: Tensor | None = None) -> Tensor:
        """Mix ``(B, rows, columns, D)`` along axis 1 or 2; the branch counts ``keep`` times, as ``draw`` gave it."""
        raft = self.raft
        other, size = image.shape[3 - axis], image.shape[axis]
        batch, bundles = image.shape[0], image.shape[3] // raft
        # One product: (sample, other place, bundle) x (channel, place).
        read = self.norm(image).unflatten(-1, (raft, bundles)).permute(0, 3 - axis, 4, 3, axis).flatten(0, 2).flatten(1)
        hidden = self.fc1(read)
        out = self.fc2(gelu(hidden) if is_plain(self.fc1, nn.Linear) else F.gelu(hidden))
        out = out.view(batch, other, bundles, raft, size)
        out = out.permute((0, 4, 1, 3, 2) if axis == 1 else (0, 1, 4, 3, 2)).reshape(image.shape)
        return image + (out if keep is None else out * keep)

    def draw(self, image: Tensor) -> Tensor | None:
        """What the branch of every sample is multiplied by in training, ``(B, 1, 1, 1)``; None: all go with it."""
        if not (self.training and self.drop_path):
            return None
        return image.new_empty(image.shape[0], 1, 1, 1).bernoulli_(1 - self.drop_path) / (1 - self.drop_path)

    def matrix(
        self, image: Tensor, axis: int, keep: Tensor | None, before: tuple[Matrix, ...], values: Tensor
    ) -> Matrix:
        """The same as a matrix on ``[tokens x raft; 1]`` per sample and bundle; ``before`` makes the image of the
        values."""
        rows, columns = image.shape[1:3]
        raft, other, size = self.raft, image.shape[3 - axis], image.shape[axis]
        like: Any = {"dtype": image.dtype, "device": image.device}
        length = rows * columns * raft
        place = torch.arange(length, device=image.device).view(rows, columns, raft)
        # rows of the perceptron's own order: place on the other axis, channel of the bundle, place on the axis
        order = Permutation(place.permute(2 - axis, 2, axis - 1).flatten(), image.dtype)
        back = Permutation(torch.empty_like(order.index).index_copy(0, order.index, place.flatten()), order.dtype)
        each = Identity(other, **like)
        weight1, bias1 = affine_of(self.fc1, raft * size)
        weight2, bias2 = affine_of(self.fc2, len(bias1))
        b1, b2 = bias1.repeat(other), bias2.repeat(other)
        first = Product((Kron(each, Dense(weight1[None, None])), order))
        norm = self._normalise(image)
        hidden = Product((ColumnCat((first, Dense(b1.view(1, 1, -1, 1)))), norm, *before))
        perceptron = (
            Affine(Product((back, Kron(each, Dense(weight2[None, None])))), b2[back.index].view(1, 1, -1)),
            Affine(Gate(hidden, values)),
            Affine(first, b1.view(1, 1, -1)),
            norm,
        )
        branch: Matrix = Product(perceptron)
        if keep is not None:
            branch = Scale(branch, keep)
        return Sum((Affine(Identity(length, **like), unit=0.0), branch))

    def _normalise(self, image: Tensor) -> Normalise:
        """The layer norm of this image. Mean and rate are functions of it: a gradient passes through them."""
        norm = self.norm
        wide = image.to(working_dtype(image))
        mean = wide.mean(-1, keepdim=True)
        rate = torch.rsqrt((wide - mean).square().mean(-1) + norm.eps).to(image.dtype)
        weight, bias = (tensor.view(self.raft, -1) for tensor in (norm.weight, norm.bias))
        return Normalise(mean.to(image.dtype).flatten(1), rate.flatten(1), weight, bias)

    def resize_(self, old: int, new: int) -> None:
        """Adapt the weights to an axis of another size: see ``Raft.resize_``."""
        raft, fc1, fc2 = self.raft, self.fc1, self.fc2
        hidden, wanted = fc1.out_features, self.hidden(new)
        with torch.no_grad():
            reading = interpolate.positions(fc1.weight.unflatten(1, (raft, old)), 2, (old,), (new,)) * (old / new)
            writing = interpolate.positions(fc2.weight.unflatten(0, (raft, old)), 1, (old,), (new,))
            offset = interpolate.positions(fc2.bias.view(raft, old), 1, (old,), (new,)).flatten()
            reading, writing = reading.flatten(1), writing.flatten(0, 1)
            if wanted <= hidden:
                strength = reading.norm(dim=1) * writing.norm(dim=0)
                index = strength.topk(wanted).indices.sort().values
                share = torch.ones_like(strength[index])
            else:
                index = torch.arange(wanted, device=reading.device) % hidden
                share = 1 / ((wanted - 1 - index) // hidden + 1).to(reading.dtype)  # over how many there are of it
            arrays = (reading[index], fc1.bias[index], writing[:, index] * share, offset)
        for layer, name, value in zip((fc1, fc1, fc2, fc2), ("weight", "bias") * 2, arrays, strict=True):
            setattr(layer, name, nn.Parameter(value.contiguous(), getattr(layer, name).requires_grad))
        fc1.in_features = fc2.out_features = raft * new
        fc1.out_features = fc2.in_features = wanted


@register(
    "raft",
    matrix="per sample and bundle: (I + MLP norm) down the columns, then along the rows",
    cost="O(L D (raft * side + 1))",
    source="okojoalg/raft-mlp",
    paper="2108.04384, equation 4",
    smallest={"mlp_ratio": 1.0},
)
class Raft(Mixer):
    """``y = x + V(norm x); z = y + H(norm y)``: the token mixing of RaftMLP's block, norms and residuals included.

    V is a perceptron down every column, H along every row of the image (a sequence is one row, and has H alone). They
    mix ``raft`` channels too, so the matrix has the tokens times these channels as its axis, one for each sample and
    bundle: D / raft heads. A layer norm whose mean and deviation are given is affine, and ``gelu(z) = z Phi(z)``,
    so the matrix is exact; its last column takes a constant 1 that is appended to the tokens. In a pre-norm block with
    its own residual this mixer is not the published model: there it stands alone.

    Args:
        raft: channels r of a bundle; must divide ``dim``.
        mlp_ratio: hidden width of the perceptrons over their width (raft times the side).
        axis: ``"both"``, or one direction alone: ``"vertical"`` or ``"horizontal"``.
        built: a grid to keep the weights for; every other grid is resized to it before and back afterwards, bicubic,
            the residual included (published: detail beyond the built grid is lost in every block). The mixer is then
            of any length.
        drop_path: chance of a sample to go without a direction in training, drawn for each (the published networks:
            0.1 in every block; here, as the residuals are inside).
    """

    traits = Traits(data_dependent=True, length="fixed", mask="content")

    def __init__(
        self,
        dim: int,
        grid: Grid | None = None,
        *,
        raft: int = 2,
        mlp_ratio: float = 2.0,
        axis: Literal["both", "vertical", "horizontal"] = "both",
        built: Grid | None = None,
        drop_path: float = 0.0,
    ) -> None:
        if built is not None:
            self.traits = replace(self.traits, length="any")
        if axis == "vertical":
            self.traits = replace(self.traits, dims=frozenset({2}))
        super().__init__(dim, grid)
        if dim % raft:
            raise ValueError(f"raft must be a positive divisor of dim={dim}, got {raft!r}")
        if not mlp_ratio * raft >= 1:
            raise ValueError(f"mlp_ratio must leave at least one hidden unit a place, got {mlp_ratio!r}")
        self.built = None if built is None else check_grid(built, self.traits, type(self).__name__, "built")
        home = self._home()
        if self.grid is not None and len(self.grid) != len(home):
            raise ValueError(f"built must have as many axes as grid={self.grid}, got {built!r}")
        self.raft, self.axis, self.axes = raft, axis, len(home)
        self.vertical = self.horizontal = None
        if axis != "horizontal" and len(home) == 2:
            self.vertical = AxisMLP(dim, home[0], raft, mlp_ratio, drop_path)
        if axis != "vertical":
            self.horizontal = AxisMLP(dim, home[-1], raft, mlp_ratio, drop_path)

    def _home(self) -> Grid:
        """The grid of the weights."""
        home = self.grid if self.built is None else self.built
        assert home is not None
        return home

    def _sides(self, grid: Grid, like: Tensor) -> Sides | None:
        """How to come from two axes to the grid of the weights and back; None where it is that."""
        home = self._home() if self.axes == 2 else (1, *self._home())
        return None if grid == home else (interpolate.bicubic(grid, home, like), interpolate.bicubic(home, grid, like))

    def _directions(self) -> list[tuple[AxisMLP, int]]:
        return [(part, axis) for part, axis in ((self.vertical, 1), (self.horizontal, 2)) if part is not None]

    def project(self, x: Tensor, context: Context) -> Projected:
        image, sides, keeps = self._prepared(x, context)
        values = self._values(image)
        factors: list[Matrix] = []  # the last one stands first
        if sides is not None:
            factors, image = [self._raft_wise(sides[0])], interpolate.resample(image, sides[0])
        directions = self._directions()
        for number, ((part, axis), keep) in enumerate(zip(directions, keeps, strict=True), 1):
            factors.insert(0, part.matrix(image, axis, keep, tuple(factors), values))
            if number < len(directions):  # the next norm takes its statistics of what comes out
                image = part(image, axis, keep)
        if sides is not None:
            factors.insert(0, self._raft_wise(sides[1]))
        rows = values.shape[2] - 1
        tokens = torch.arange(rows, device=values.device).view(1, 1, -1)
        return Projected(Product((Selection(tokens, rows + 1, values.dtype), *factors)), values)

    def product(self, x: Tensor, context: Context) -> tuple[Tensor, Any]:
        # The matrix is made from norms and hidden units on the way, which are the product itself.
        image, sides, keeps = self._prepared(x, context)
        inside = max(part.mlp_ratio for part, _ in self._directions())
        # In training, where samples go without a direction, the batch is in one piece.
        done = [self._mix(piece, sides, keeps) for piece in pieces(image, self, inside)]
        image = done[0] if len(done) == 1 else torch.cat(done)
        # The token axis is (token, channel of the bundle), so that tokens are values as they stand.
        return image.reshape(x.shape[0], x.shape[1] * self.raft, self.dim // self.raft).mT.unsqueeze(-1), None

    def _prepared(self, x: Tensor, context: Context) -> tuple[Tensor, Sides | None, list[Tensor | None]]:
        """The image ``(B, rows, columns, D)``, how to resample it, and what each direction's branch counts."""
        check_axes(self, context.grid)
        grid = context.grid if self.axes == 2 else (1, *context.grid)
        image = x.view(x.shape[0], *grid, self.dim)
        return image, self._sides(grid, x), [part.draw(image) for part, _ in self._directions()]

    def _values(self, image: Tensor) -> Tensor:
        """Tokens and a constant 1 behind them, ``(B, D / raft, L * raft + 1, 1)``."""
        rows = image.shape[1] * image.shape[2] * self.raft
        bundles = image.reshape(image.shape[0], rows, self.dim // self.raft)
        return F.pad(bundles, (0, 0, 0, 1), value=1.0).mT.unsqueeze(-1)

    def _mix(self, image: Tensor, sides: Sides | None, keeps: list[Tensor | None]) -> Tensor:
        """The whole layer on ``(B, rows, columns, D)``."""
        if sides is not None:
            image = interpolate.resample(image, sides[0])
        for (part, axis), keep in zip(self._directions(), keeps, strict=True):
            image = part(image, axis, keep)
        return image if sides is None else interpolate.resample(image, sides[1])

    def _raft_wise(self, sides: interpolate.Sides) -> Affine:
        rows, columns = (Dense(side[None, None]) for side in sides)
        return Affine(Kron(Kron(rows, columns), Identity(self.raft, 1, sides[0].dtype, sides[0].device)))

    def merge(self, mixed: Tensor, rest: Any) -> Tensor:
        return mixed.squeeze(-1).mT.reshape(mixed.shape[0], mixed.shape[2] // self.raft, self.dim)

    def resize_(self, grid: Grid) -> Self:
        """Carry the weights to another grid, in place; with ``built`` they stay as they are.

        Weights over places are interpolated along the axis; what a hidden unit sums up over a constant stays about
        what it was. A larger axis has more hidden units: some are doubled, at half the strength each; for a smaller one
        the weakest are dropped.
        """
        old = self.grid
        check_axes(self, grid)
        super().resize_(grid)
        assert self.grid is not None
        if self.built is None and old is not None:
            for part, axis in self._directions():
                before, after = old[min(axis, self.axes) - 1], self.grid[min(axis, self.axes) - 1]
                if before != after:
                    part.resize_(before, after)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, raft={self.raft}, axis={self.axis}, built={self.built}"

    published: ClassVar[dict[str, Any]] = {"okojoalg/raft-mlp": lambda module, state: _published(module, state)}


def _published(module: Raft, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of a block (1: vertical, 3: horizontal) or of one direction alone.

    The published norms of the token mixing count channels by bundle first, unlike everything else there.
    """
    prefixes = {"1.": "vertical.", "3.": "horizontal."} if module.axis == "both" else {"": f"{module.axis}."}
    layers = {"norm.1.": "norm.", "fn.0.": "fc1.", "fn.3.": "fc2."}
    ours = {}
    for theirs, prefix in prefixes.items():
        for layer, name in layers.items():
            for kind in ("weight", "bias"):
                value = state[f"{theirs}{layer}{kind}"]
                if name == "norm.":
                    value = value.view(-1, module.raft).mT.flatten()
                ours[f"{prefix}{name}{kind}"] = value
    return ours
