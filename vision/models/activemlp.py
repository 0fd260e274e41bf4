"""ActiveMLP (Wei et al., 2203.06108): every channel of a token picks where in its row and its column it reads.

Weights of ``microsoft/TokenMixers``: ``ActivexTiny``, ``ActiveTiny``, ``ActiveSmall``, ``ActiveBase`` and
``ActiveLarge`` (also fine-tuned at 384), linked in ``Active Token Mixer/README.md``, to be downloaded by hand
(OneDrive); the printed accuracies are of the checkpoints' ``model_ema``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from timm.layers import DropPath, register_notrace_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from matmix.mixers.active import Active
from matmix.ops.marks import spare
from vision.base import Size, VisionModel, drop_paths, image_size
from vision.layers import ConvDownsample, ConvStem, Head, Mlp, Stage
from vision.layers.block import add
from vision.published import State, mixer_states, rename
from vision.registry import register

SOURCE = "microsoft/TokenMixers"


class Given(nn.Module):
    """Stands in a mixer's ``offset_layer`` and gives the distances that its block was handed."""

    offsets: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.offsets is not None, "the block sets the distances before it calls its mixer"
        return self.offsets


@register_notrace_module  # torch.fx would not see how the distances reach the mixer
class ActiveBlock(nn.Module):
    """``x <- x + drop(mixer(norm1 x))``, then ``x <- x + drop(mlp(norm2 x))``; where the mixer reads comes in by hand.

    Args:
        dim: channels.
        hidden: width of the MLP's hidden layer.
        share: neighbouring channels that read at the same distance.
        grid: rows and columns.
        drop_path: rate of stochastic depth, the same for both branches.
        offset: whether the block has the layer that makes distances (for itself and for those behind it).
    """

    def __init__(
        self, dim: int, hidden: int, share: int, grid: tuple[int, int], drop_path: float, offset: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.token_mixer = Active(dim, grid, share=share)
        made = self.token_mixer.offset_layer
        self.token_mixer.offset_layer = self.given = Given()
        self.offset_layer = made if offset else None
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden, act="gelu")
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Map ``(B, h, w, dim)`` and distances ``(B, h w, 2 dim / share)``, those along the row first."""
        grid = x.shape[1], x.shape[2]
        self.given.offsets = offsets
        mixed = self.token_mixer(self.norm1(x).flatten(1, 2), grid=grid).unflatten(1, grid)
        self.given.offsets = None
        x = add(x, self.drop_path(mixed))
        return add(x, self.drop_path(self.mlp(self.norm2(x))))

    published: ClassVar[dict[str, Callable[[Any, State], State]]] = {
        SOURCE: lambda block, state: mixer_states(block, rename(state, [(r"^atm\.", "token_mixer.")]), SOURCE)
    }


class ActiveStage(Stage):
    """Blocks that share distances in runs; before each run a depthwise 3 x 3 convolution (one for all of them) is
    added to the map and tells the block where it stands."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[ActiveBlock], dim: int) -> None:
        super().__init__(downsample, blocks)
        self.positions = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)
        spare(self.positions, ("weight", "bias"))  # as published

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        offsets = None
        for block in self.blocks:
            assert isinstance(block, ActiveBlock)
            if block.offset_layer is not None:
                x = x + self.positions(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
                offsets = block.offset_layer(x.flatten(1, 2))
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, offsets, use_reentrant=False)
            else:
                x = block(x, offsets)
        return x


class ActiveMLP(VisionModel):
    """Convolutional stem and downsampling without norms, blocks of the active mixer and an MLP, norm, mean, classifier.

    Nothing is tied to the image's size. Every ``interval``-th block of a stage makes new distances, from its input
    before the norm; the blocks behind it read at the same ones. The last block of a stage never does, unless it is the
    only one (the published code would then fail or use the previous stage's).

    Args:
        depths, dims: blocks and channels of each stage.
        mlp_ratios: hidden width of the MLPs over the channels, for each stage.
        shares: neighbouring channels that read at the same distance, for each stage.
        interval: blocks from one set of distances to the next.
        img_size: only noted; every size works.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 4, 2),
        dims: Sequence[int] = (64, 128, 320, 512),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        shares: Sequence[int] = (2, 4, 4, 8),
        interval: int = 2,
        img_size: Size = 224,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans)
        if not len(depths) == len(dims) == len(mlp_ratios) == len(shares):
            raise ValueError(f"dims, mlp_ratios and shares must have an entry per stage, got {depths=}")
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f"interval must be a positive integer, got {interval!r}")
        self.stem = ConvStem(in_chans, dims[0], norm=None)
        grid = self.stem.out_grid(image_size(img_size))
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_paths(drop_path_rate, depths), strict=True)):
            downsample: nn.Module = nn.Identity()
            if i:
                downsample = down = ConvDownsample(dims[i - 1], dim, norm=None)
                grid = down.out_grid(grid)
            last = len(rates) - 1
            blocks = [
                ActiveBlock(
                    dim,
                    int(dim * mlp_ratios[i]),
                    shares[i],
                    grid,
                    rate,
                    offset=j == 0 or (j % interval == 0 and j != last),
                )
                for j, rate in enumerate(rates)
            ]
            stages.append(ActiveStage(downsample, blocks, dim))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = Head(dims[-1], num_classes, global_pool, drop_rate=drop_rate)
        self.apply(_init)
        self.finish(dims, [4 * 2**i for i in range(len(dims))])

    published: ClassVar[dict[str, Callable[[Any, State], State]]] = {
        SOURCE: lambda model, state: _published(model, state)
    }


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _published(model: ActiveMLP, state: State) -> State:
    patterns = [
        (r"^patch_embed\.proj\.", "stem.conv."),
        (r"^pos_blocks\.(\d+)\.proj\.", r"stages.\1.positions."),
        (r"^blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"\.atm\.", ".token_mixer."),
        (r"^head\.", "head.fc."),
    ]
    for i, stage in enumerate(model.stages):  # published: inside the last block of the stage before
        assert isinstance(stage, Stage)
        last = rf"^stages\.{i}\.blocks\.{len(stage.blocks) - 1}\."
        patterns.append((rf"{last}downsample\.proj\.", f"stages.{i + 1}.downsample.conv."))
    return mixer_states(model, rename(state, patterns), SOURCE)


_DIMS = (64, 128, 320, 512)
_WIDE = {"mlp_ratios": (8, 8, 4, 4), "interval": 6}
_SIZES: dict[str, dict[str, Any]] = {
    "xt": {"depths": (2, 2, 4, 2), "dims": _DIMS},
    "t": {"depths": (2, 3, 10, 3), "dims": _DIMS},
    "s": {"depths": (3, 4, 18, 3), "dims": _DIMS, **_WIDE},
    "b": {"depths": (3, 8, 27, 3), "dims": _DIMS, **_WIDE},
    "l": {"depths": (3, 4, 24, 3), "dims": (96, 192, 384, 768), "interval": 6},
}

for _size, _options in _SIZES.items():
    register(
        f"activemlp_{_size}",
        ActiveMLP,
        _options,
        paper="2203.06108",
        source=SOURCE,
        crop_pct=0.875,
    )
