"""Blocks and stages: where the token mixers stand."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from matmix.mixers import Mixer
from vision.layers.stems import Grid


def add(x: Tensor, branch: Tensor, res_scale: Tensor | None = None, layer_scale: Tensor | None = None) -> Tensor:
    """``res_scale * x + layer_scale * branch``, in as few passes as can be; a scale of None is 1.

    Never in place: both come from modules that were called, and a hook, a replaced module or the caller may keep them
    (and it would save no time: 1 % at most over whole models).
    """
    if layer_scale is None:
        return x + branch if res_scale is None else torch.addcmul(branch, x, res_scale)
    return torch.addcmul(x if res_scale is None else x * res_scale, branch, layer_scale)


class Block(nn.Module):
    """``x <- r1 x + l1 drop(mixer(norm1 x))``, then ``x <- r2 x + l2 drop(mlp(norm2 x))``, on ``(B, h, w, dim)``.

    Args:
        mixer: a matmix mixer of width ``dim``; it gets the tokens ``(B, h w, dim)`` with ``grid=(h, w)``.
        mlp: a module on the last axis.
        norm1, norm2: modules on maps.
        drop_path: rate of stochastic depth, the same for both branches.
        layer_scale: initial value of the vectors l1, l2; None for none.
        res_scale: initial value of the vectors r1, r2; None for none.
    """

    def __init__(
        self,
        mixer: Mixer,
        mlp: nn.Module,
        norm1: nn.Module,
        norm2: nn.Module,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        res_scale: float | None = None,
    ) -> None:
        super().__init__()

        def vector(value: float | None) -> nn.Parameter | None:
            return None if value is None else nn.Parameter(torch.full((mixer.dim,), float(value)))

        self.norm1, self.token_mixer = norm1, mixer
        self.layer_scale1, self.res_scale1 = vector(layer_scale), vector(res_scale)
        self.norm2, self.mlp = norm2, mlp
        self.layer_scale2, self.res_scale2 = vector(layer_scale), vector(res_scale)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1], x.shape[2]
        mixed = self.token_mixer(self.norm1(x).flatten(1, 2), grid=grid).unflatten(1, grid)
        x = add(x, self.drop_path(mixed), self.res_scale1, self.layer_scale1)
        return add(x, self.drop_path(self.mlp(self.norm2(x))), self.res_scale2, self.layer_scale2)


class Stage(nn.Module):
    """A downsampling and the blocks behind it: map ``(B, h, w, C)`` to ``(B, h', w', C')``.

    Args:
        downsample: ``nn.Identity()`` where the grid stays; anything else has ``out_grid(grid)``.
        blocks: modules from map to map; gradient checkpointing recomputes one at a time.
    """

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of the stage for an incoming one."""
        if isinstance(self.downsample, nn.Identity):
            return grid
        result: Grid = self.downsample.out_grid(grid)  # type: ignore[operator]
        return result

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.downsample(x))

    def run(self, x: Tensor) -> Tensor:
        """A map of the stage's own size through the blocks."""
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x
