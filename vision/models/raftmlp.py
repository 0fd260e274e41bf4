"""RaftMLP (Tatsunami and Taki, 2108.04384): perceptrons along rows and columns over bundles of channels; and the
MLP-Mixer (2105.01601) of its repository.

``mlp_mixer_b16`` is that repository's baseline: its token MLPs are twice as wide as there are tokens (392), where
MLP-Mixer B/16 has 384, so weights of Google's Mixer are not its weights (``mixers="mlp(hidden=384)"`` builds those
shapes; their layer norms have ``eps=1e-6``). ``okojoalg/raft-mlp`` publishes code and configurations
(``configs/settings/imagenet-raft-mlp-cross-mlp-emb-{s,m,l}.yaml``, ``imagenet-org-mixer.yaml``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from timm.layers import DropPath
from timm.models import register_notrace_function
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.mixers import Mixer, create_mixer
from matmix.mixers.raft import Raft
from matmix.ops import interpolate
from matmix.ranges import Amount, Chance, Count, Depth, Whole
from vision.base import Size, VisionModel, isolated
from vision.layers import Head, Mlp, Stage
from vision.layers.block import add
from vision.layers.stems import Grid
from vision.metaformer import per_stage, stage_specs, with_options
from vision.published import State, mixer_states, rename
from vision.registry import register

SOURCE = "okojoalg/raft-mlp"


class MultiScaleStem(nn.Module):
    """Patches of several sizes around the same places: image ``(B, in_chans, H, W)`` to map
    ``(B, ceil(H / stride), ceil(W / stride), dim)``, where the stride is the smallest side.

    One linear map of all of a place's patches, larger ones being padded with zeros at the border: a sum of
    convolutions. An image that is no multiple of the stride is enlarged to the next one (bicubic, as published).

    Args:
        in_chans, dim: channels before and after.
        kernel: sides of the patches.
    """

    def __init__(self, in_chans: int, dim: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.stride = min(kernel)
        if any(k % self.stride or (k - self.stride) % 2 for k in kernel):
            raise ValueError(f"kernel must hold multiples of the smallest that lie around it evenly, got {kernel!r}")
        self.convs = nn.ModuleList(
            nn.Conv2d(in_chans, dim, k, self.stride, (k - self.stride) // 2, bias=i == 0) for i, k in enumerate(kernel)
        )
        bound = (in_chans * sum(k * k for k in kernel)) ** -0.5  # that of the one linear layer
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def out_grid(self, grid: Grid) -> Grid:
        """The map's grid for an image of this size."""
        return -(-grid[0] // self.stride), -(-grid[1] // self.stride)

    def forward(self, image: Tensor) -> Tensor:
        image = enlarged(image, self.stride)
        first, *others = self.convs
        x = first(image)
        for conv in others:
            x = x + conv(image)
        return x.permute(0, 2, 3, 1).contiguous()

    published: ClassVar[dict[str, Callable[[Any, State], State]]] = {
        SOURCE: lambda stem, state: _published_stem(stem, state)
    }


class MultiScaleDownsample(MultiScaleStem):
    """The same from one map ``(B, h, w, C)`` to a coarser one."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


class RaftBlock(nn.Module):
    """Token mixing with its residuals, then ``x <- x + drop(mlp(norm2 x))``, on ``(B, h, w, dim)``.

    A mixer of fixed length is tied to a grid. With ``dynamic``, a map of another one is resized to it before and back
    afterwards (bicubic, skip included, as published): detail beyond the mixer's grid does not get past the block.

    Args:
        mixer: ``raft``, which has norms and residuals inside; any other is a branch ``x + drop(mixer(norm1 x))``.
        hidden: width of the MLP's hidden layer.
        drop_path: rate of stochastic depth.
        dynamic: as above; otherwise another grid is an error.
    """

    def __init__(self, mixer: Mixer, hidden: int, drop_path: float, dynamic: bool = False) -> None:
        super().__init__()
        self.norm1 = None if isinstance(mixer, Raft) else nn.LayerNorm(mixer.dim)
        self.token_mixer = mixer
        self.resamples = dynamic and mixer.traits.length == "fixed"
        self.norm2 = nn.LayerNorm(mixer.dim)
        self.mlp = Mlp(mixer.dim, hidden, act="gelu")
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1], x.shape[2]
        home = self.token_mixer.grid if self.resamples else grid
        assert home is not None and len(home) == 2
        x = resample(self._mix(resample(x, home), home), grid)
        return add(x, self.drop_path(self.mlp(self.norm2(x))))

    def _mix(self, x: Tensor, grid: Grid) -> Tensor:
        if self.norm1 is None:
            return self.token_mixer(x.flatten(1, 2), grid=grid).view(x.shape)
        return add(x, self.drop_path(self.token_mixer(self.norm1(x).flatten(1, 2), grid=grid).view(x.shape)))

    published: ClassVar[dict[str, Callable[[Any, State], State]]] = {
        SOURCE: lambda block, state: _published_block(block, state)
    }


class Shortcut(nn.Module):
    """Layer norm, mean over the map and a linear layer: map ``(B, h, w, dim)`` to a scale and a shift ``(B, out_dim)``
    for the channels of the last map."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, 2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x).mean((1, 2)))


class RaftStage(Stage):
    """A stage, and the shortcut from its map to the head where there is one."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__(downsample, blocks)
        self.shortcut: Shortcut | None = None


class RaftMLP(VisionModel):
    """Levels of a patch embedding and blocks; layer norm, mean, classifier.

    Weights are for the grids of ``img_size``; other sizes need ``resize_``, or ``dynamic_img_size=True``, with which
    the blocks resize their maps, as published (see ``RaftBlock``). An isotropic net is cut into stages too, so that it
    has several feature maps; with ``depths=(12,)`` it has one.

    Args:
        depths, dims: blocks and channels of each stage; fewer depths are the first stages.
        mixers: see ``vision.metaformer.stage_specs``; ``"mlp(hidden=392)"`` for perceptrons over all tokens at once
            (MLP-Mixer).
        kernel: for each stage the sides of its patches, the smallest being their stride; () for none.
        mlp_ratio: hidden width of the MLPs over the channels, one or one a stage.
        shortcut: whether every level before the last scales and shifts the channels of the last map, by its own mean
            (the published class does unless told otherwise; all of the published configurations tell it so).
        img_size: the size that the weights are for.
        dynamic_img_size: whether other sizes are accepted.
        drop_path_rate: the same in every block, and drawn for each direction and for the MLP.
    """

    def __init__(
        self,
        depths: Sequence[Depth] = (2, 2, 6, 2),
        dims: Sequence[int] = (64, 128, 256, 512),
        mixers: str | Sequence[str] = "raft",
        *,
        kernel: Sequence[Sequence[int]] = ((4, 8), (2, 4), (2, 4), (2,)),
        mlp_ratio: Amount | Sequence[Amount] = 4.0,
        shortcut: bool = False,
        img_size: Size = 224,
        dynamic_img_size: bool = False,
        num_classes: Whole = 1000,
        in_chans: Count = 3,
        global_pool: str = "avg",
        drop_rate: Chance = 0.0,
        drop_path_rate: Chance = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, img_size)
        if len(depths) > min(len(dims), len(kernel)):
            raise ValueError(f"dims and kernel must have an entry per stage, got {depths=}")
        if not kernel[0]:
            raise ValueError(f"the first stage needs patches, got kernel={kernel!r}")
        self.stem = MultiScaleStem(in_chans, dims[0], kernel[0])
        grid = self.stem.out_grid(self.img_size)
        dims, reductions = list(dims[: len(depths)]), [self.stem.stride]

        ratios = per_stage("mlp_ratio", mlp_ratio, len(depths))
        specs, seed = stage_specs(mixers, depths), int(torch.randint(2**31, (), device="cpu"))
        stages: list[RaftStage] = []
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            downsample: nn.Module = nn.Identity()
            if i and kernel[i]:
                downsample = down = MultiScaleDownsample(dims[i - 1], dim, kernel[i])
                grid = down.out_grid(grid)
                reductions.append(reductions[-1] * down.stride)
            elif i:
                reductions.append(reductions[-1])
                if dim != dims[i - 1]:
                    raise ValueError(f"dims may change where a stage has patches only, got {dims!r} with {kernel!r}")
            blocks = []
            for j in range(depth):
                with isolated(seed, f"stages.{i}.blocks.{j}.token_mixer"):
                    mixer = create_mixer(with_options(specs[i][j], "raft", drop_path=drop_path_rate), dim, grid)
                blocks.append(RaftBlock(mixer, int(dim * ratios[i]), drop_path_rate, dynamic_img_size))
            stages.append(RaftStage(downsample, blocks))
            if shortcut and i and kernel[i]:  # a new level begins: the one before has its end
                stages[i - 1].shortcut = Shortcut(dims[i - 1], dims[-1])
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = Head(dims[-1], num_classes, global_pool, drop_rate=drop_rate)
        for module in self.head.modules():  # every linear layer of the published net starts as torch has it
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        self.finish(dims, reductions)

    def aside(self, stage: nn.Module, x: Tensor) -> list[Tensor]:
        shortcut = stage.shortcut
        return [] if shortcut is None else [shortcut(x)]  # type: ignore[operator]

    def last(self, x: Tensor, kept: list[Tensor]) -> Tensor:
        x = self.norm(x)
        # Published after pooling; a scale and a shift of channels are the same before the mean.
        for both in reversed(kept):
            scale, shift = both[:, None, None].chunk(2, -1)
            x = torch.addcmul(shift, scale, x)
        return x

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        depth = len(self.stages)
        wanted = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_norm or len(self.stages) < depth:  # nothing is left that they would lead to
            for stage in self.stages:
                stage.shortcut = None  # type: ignore[assignment]
        return wanted

    published: ClassVar[dict[str, Callable[[Any, State], State]]] = {
        SOURCE: lambda model, state: _published(model, state)
    }


@register_notrace_function
def enlarged(image: Tensor, stride: int) -> Tensor:
    """Bicubic interpolation of an image to the next multiple."""
    size = [-(-side // stride) * stride for side in image.shape[2:]]
    return image if size == list(image.shape[2:]) else F.interpolate(image, size, mode="bicubic", align_corners=False)


@register_notrace_function
def resample(x: Tensor, grid: Grid) -> Tensor:
    """Bicubic interpolation of a map to a grid (pixel centres, no antialiasing)."""
    old = x.shape[1], x.shape[2]
    return x if grid == old else interpolate.resample(x, interpolate.bicubic(old, grid, x))


def _published_stem(stem: MultiScaleStem, state: State) -> State:
    """One linear layer over (channel, row, column) of all patches; over (row, column, channel) in the plain one."""
    plain = "weight" in state
    prefix = "" if plain else "fc."
    weight, ours = state[f"{prefix}weight"], {"convs.0.bias": state[f"{prefix}bias"]}
    sides = [conv.get_parameter("weight").shape[2] for conv in stem.convs]
    channels, rest = divmod(weight.shape[1], sum(k * k for k in sides))
    if rest:
        return {**ours, "convs.0.weight": weight}  # of the wrong shape, which the caller says
    for i, part in enumerate(weight.split([channels * k * k for k in sides], 1)):
        if plain:
            ours[f"convs.{i}.weight"] = part.unflatten(1, (sides[i], sides[i], channels)).permute(0, 3, 1, 2)
        else:
            ours[f"convs.{i}.weight"] = part.unflatten(1, (channels, sides[i], sides[i]))
    return ours


def _published_block(block: RaftBlock, state: State) -> State:
    """Modules 1, 3, 5 of a block are vertical, horizontal and channel mixing; 1 and 3 tokens and channels in Mixer."""
    last = 5 if isinstance(block.token_mixer, Raft) else 3
    patterns = [
        (rf"^{last}\.norm\.", "norm2."),
        (rf"^{last}\.fn\.0\.", "mlp.fc1."),
        (rf"^{last}\.fn\.3\.", "mlp.fc2."),
    ]
    if last == 3:
        patterns += [(r"^1\.norm\.1\.", "norm1."), (r"^1\.", "token_mixer.")]
    return mixer_states(block, rename(state, [*patterns, (r"^([13]\.)", r"token_mixer.\1")]), SOURCE)


def _published(model: RaftMLP, state: State) -> State:
    """Levels hold an embedding (0 where multi-scale, 1 where plain) and from 2 on the blocks."""
    rest = dict(state)

    def below(prefix: str) -> State:
        return {name[len(prefix) :]: rest.pop(name) for name in list(rest) if name.startswith(prefix)}

    ours: State = {}

    def put(prefix: str, part: nn.Module, published: State) -> None:
        assert isinstance(part, MultiScaleStem | RaftBlock)
        converted = type(part).published[SOURCE](part, published)
        ours.update({f"{prefix}.{name}": value for name, value in converted.items()})

    level, number = -1, 0
    for i, stage in enumerate(model.stages):
        assert isinstance(stage, Stage)
        if i == 0 or not isinstance(stage.downsample, nn.Identity):
            level, number = level + 1, 2
            embedding = below(f"levels.{level}.fn.0.") or below(f"levels.{level}.fn.1.")
            name, part = ("stem", model.stem) if i == 0 else (f"stages.{i}.downsample", stage.downsample)
            put(name, part, embedding)
        for j, block in enumerate(stage.blocks):
            put(f"stages.{i}.blocks.{j}", block, below(f"levels.{level}.fn.{number}."))
            number += 1
    patterns, number = [(r"^classifier\.", "head.fc.")], 0
    for i, stage in enumerate(model.stages):  # heads of the levels with a shortcut, then that of the last
        if stage.shortcut is not None:
            patterns += [
                (rf"^heads\.{number}\.1\.", f"stages.{i}.shortcut.norm."),
                (rf"^heads\.{number}\.4\.", f"stages.{i}.shortcut.fc."),
            ]
            number += 1
    return ours | rename(rest, [*patterns, (rf"^heads\.{number}\.1\.", "norm.")])


_SIZES = {"s": (64, 128, 256, 512), "m": (96, 192, 384, 768), "l": (128, 192, 512, 1024)}

for _size, _dims in _SIZES.items():
    register(
        f"raftmlp_{_size}",
        RaftMLP,
        {"depths": (2, 2, 6, 2), "dims": _dims},
        paper="2108.04384",
        source=SOURCE,
        crop_pct=0.875,
        fixed_input_size=True,
        first_conv=("stem.convs.0", "stem.convs.1"),
    )
register(
    "mlp_mixer_b16",
    RaftMLP,
    {"depths": (3, 3, 3, 3), "dims": (768,) * 4, "mixers": "mlp(hidden=392)", "kernel": ((16,), (), (), ())},
    paper="2105.01601",
    source=SOURCE,
    crop_pct=0.875,
    fixed_input_size=True,
    pool_size=(14, 14),
    first_conv="stem.convs.0",
)
