"""ViM2 (Behrouz, Santacatterina and Zabih, MambaMixer, 2403.19888): selective token and channel mixers, every one of
which reads weighted averages of all that came before it in its stage.

No code and no weights were published, and the first author calls the draft preliminary (MambaMixer/M2, issue 1). This
is a reading; where the paper is silent or disagrees with itself, the choice is:

- Stem and downsampling are VMamba's: patches of 4 x 4 and a norm, then patch merging. Table 8 prints a stem output of
  112 x 112 for a convolution of stride 4 on 224 x 224; it is 56 x 56.
- A block is one token mixer and one channel mixer in the text, two to one in table 8, which gives the sizes: here a
  block has ``tokens=2`` token mixers in a row, whose end is the block's ``y_token``, then a channel mixer. The widths
  that table 8 prints for the channel mixers (192 in a stage of 96) find no place in the text.
- The averages (``matmix.ops.averages``) are plain scalars that start as blocks in a row, confined to a stage.
- The paper writes no residual connection and no norm, but says that VMamba is a special case, and VMamba's blocks have
  both: so each mixer here is ``z + mixer(norm z)``. ``residual=False`` takes the equations by the letter.
- The mixers are those of matmix, whose docstrings state their own choices: ``selective_token`` and
  ``selective_channel``, which reads each token as a sequence of channels and works at any resolution.

Parameters: 19.3, 33.6 and 57.7 M; the paper prints 20, 43 and 74 M. No single design of this kind has the three printed
sizes: from T to S there are twelve token mixers more (14.35 M) and six channel mixers, which leaves those 1.44 M each,
and with as much in T's six it would have 23.6 M at least. Published top-1 at 224 px: 82.7, 83.7, 83.9.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from matmix.mixers import Mixer, create_mixer
from matmix.mixers.selective_channel import SelectiveChannel
from matmix.mixers.selective_token import SelectiveToken
from matmix.ops.averages import Block, WeightedAverages
from matmix.ranges import Chance, Count, Depth, Whole
from vision.base import Size, VisionModel, drop_paths, isolated
from vision.layers import Head, Stage
from vision.metaformer import stage_specs
from vision.models.hydra_vit import MixerBlock
from vision.models.vmamba import PatchMerging, PatchStem, init
from vision.registry import register


class PlainBlock(MixerBlock):
    """``x <- drop(mixer(norm1 x))``: no residual connection."""

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1], x.shape[2]
        return self.drop_path(self.token_mixer(self.norm1(x).flatten(1, 2), grid=grid).unflatten(1, grid))


class MixedBlock(nn.Module):
    """Some token mixers, then a channel mixer, each a module on maps ``(B, h, w, dim)``."""

    def __init__(self, tokens: Sequence[nn.Module], channel: nn.Module) -> None:
        super().__init__()
        self.token = nn.Sequential(*tokens)
        self.channel = channel

    def forward(self, x: Tensor) -> Tensor:
        return self.channel(self.token(x))


class AveragedBlock(MixedBlock):
    """The same, with something between the two, as a block of ``WeightedAverages``."""

    def forward(self, x: Tensor, join: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The token mixers' input to their output ``y``, and that of the channel mixer, which reads ``join(y)``."""
        token = self.token(x)
        return token, self.channel(join(token))


class AveragedStage(Stage):
    """A stage whose blocks read weighted averages of all outputs before them; its own is the last channel mixer's."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[AveragedBlock]) -> None:
        super().__init__(downsample, blocks)
        self.averages = WeightedAverages(len(blocks))

    def run(self, x: Tensor) -> Tensor:
        _, channels = self.averages(x, [self._kept(block) for block in self.blocks])
        return channels[-1]

    def _kept(self, block: nn.Module) -> Block:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return partial(checkpoint, block, use_reentrant=False)
        return partial(block)  # no module: what offloads weights moves the arguments of a call, modules too


class ViM2(VisionModel):
    """Images to logits; any size of at least 32 pixels a side.

    Args:
        depths: blocks of each stage.
        dims: channels of each stage.
        mixers: the token mixers, see ``vision.metaformer.stage_specs``; all of a block are alike.
        channel_mixers: the channel mixers, in the same form.
        tokens: token mixers of a block.
        averaging: whether the stages average; blocks in a row otherwise.
        residual: whether each mixer has a residual connection.
        img_size: for mixers of fixed length; the defaults only note it.
    """

    def __init__(
        self,
        depths: Sequence[Depth] = (1, 1, 3, 1),
        dims: Sequence[int] = (96, 192, 384, 768),
        mixers: str | Sequence[str] = "selective_token",
        *,
        channel_mixers: str | Sequence[str] = "selective_channel",
        tokens: Count = 2,
        averaging: bool = True,
        residual: bool = True,
        img_size: Size = 224,
        num_classes: Whole = 1000,
        in_chans: Count = 3,
        global_pool: str = "avg",
        drop_rate: Chance = 0.0,
        drop_path_rate: Chance = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, img_size)
        if len(dims) != len(depths) or not depths:
            raise ValueError(f"dims must have an entry per stage of depths={depths!r}, got {dims!r}")
        specs, channel_specs = stage_specs(mixers, depths), stage_specs(channel_mixers, depths)
        self.stem = PatchStem(in_chans, dims[0])
        grid = self.stem.out_grid(self.img_size)
        seed = int(torch.randint(2**31, (), device="cpu"))
        kind = MixerBlock if residual else PlainBlock
        stages: list[Stage] = []
        for i, (dim, rates) in enumerate(zip(dims, drop_paths(drop_path_rate, depths), strict=True)):
            downsample: nn.Module = nn.Identity()
            if i:
                downsample = merging = PatchMerging(dims[i - 1], dim)
                grid = merging.out_grid(grid)

            def mixer(spec: str, name: str, dim: int = dim, grid: tuple[int, int] = grid) -> Mixer:
                with isolated(seed, name):
                    made = create_mixer(spec, dim, grid)
                    if isinstance(made, SelectiveToken | SelectiveChannel):
                        made.apply(init)
                return made

            blocks = []
            for j, rate in enumerate(rates):
                name = f"stages.{i}.blocks.{j}"
                parts = [kind(mixer(specs[i][j], f"{name}.token.{k}"), rate) for k in range(tokens)]
                blocks.append((parts, kind(mixer(channel_specs[i][j], f"{name}.channel"), rate)))
            if averaging:
                stages.append(AveragedStage(downsample, [AveragedBlock(*block) for block in blocks]))
            else:
                stages.append(Stage(downsample, [MixedBlock(*block) for block in blocks]))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = Head(dims[-1], num_classes, global_pool, drop_rate=drop_rate)
        for name, module in self.named_modules():
            if "token_mixer" not in name:
                init(module)
        self.finish(dims, [4 * 2**i for i in range(len(depths))])


for _name, _depths, _dim in (("vim2_t", 3, 96), ("vim2_s", 9, 96), ("vim2_b", 9, 128)):
    register(
        _name,
        ViM2,
        {"depths": (1, 1, _depths, 1), "dims": tuple(_dim * 2**i for i in range(4))},
        paper="2403.19888",
        source="MambaMixer/M2",
        crop_pct=0.9,
    )
