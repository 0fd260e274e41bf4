"""AFFNet: mobile networks with adaptive frequency filters, arXiv 2307.14008.

Weights: the README of https://github.com/microsoft/TokenMixers, folder "Adaptive Frequency Filters", links them
(``affnet_et``, ``affnet_t``, ``affnet``; the averaged ones are what the paper reports)::

    model = vision.create_model("affnet_t")
    matmix.load_published(model, torch.load(FILE), source="microsoft/TokenMixers")

Images are in [0, 1] without normalisation there. The files of the released settings are not public: by report they
have SiLU everywhere (the paper's figure has ReLU in the mask network, the command line's defaults are ReLU and
``norm="layer_norm"``). Crop and interpolation are the code's defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from timm.layers import DropPath, make_divisible
from timm.models import register_notrace_module
from torch import Tensor, nn

from matmix.mixers import Mixer, create_mixer
from matmix.ops.pieces import pieces
from matmix.ranges import Chance, Count, Depth, Whole
from vision.base import Size, VisionModel, drop_paths, isolated
from vision.layers import Head, MapNorm, Stage
from vision.layers.conv_norm import ConvNorm, ImageConvNorm
from vision.layers.stems import Grid
from vision.metaformer import per_stage, stage_specs
from vision.published import State, rename
from vision.registry import register

Norm = Literal["layer_norm_2d", "layer_norm"]


class DeviationNorm(nn.Module):
    """``(x - mean) / (std + eps) * weight + bias`` over the channels of a position (AFFNet's ``layer_norm``)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        return (x - mean) / (var.sqrt() + self.eps) * self.weight + self.bias


@register_notrace_module  # it looks at the batch, which torch.fx cannot
class InvertedResidual(nn.Module):
    """Expand, depthwise 3 x 3, project, with a skip where the shape stays: map ``(B, h, w, dim)`` to
    ``(B, ceil(h / stride), ceil(w / stride), out_dim)`` (MobileNetV2, arXiv 1801.04381).

    Args:
        dim, out_dim: channels before and after.
        expand: inner width over ``dim``, rounded to a multiple of 8; 1 leaves the expansion out.
        stride, dilation: of the depthwise convolution.
        act: a name of ``vision.layers.ACTIVATIONS``.
    """

    def __init__(
        self, dim: int, out_dim: int, expand: float, *, stride: int = 1, dilation: int = 1, act: str = "silu"
    ) -> None:
        super().__init__()
        hidden = make_divisible(round(dim * expand), 8)
        self.expand = ConvNorm(dim, hidden, act=act) if expand != 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, 3, stride, groups=hidden, dilation=dilation, act=act)
        self.project = ConvNorm(hidden, out_dim)
        self.skip = stride == 1 and dim == out_dim
        self.widest = hidden / dim  # the inner map over the outer one

    def out_grid(self, grid: Grid) -> Grid:
        """The grid of the result."""
        return self.depthwise.out_grid(grid)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self._forward(part) for part in pieces(x, self, self.widest)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


class AFFBlock(nn.Module):
    """``x + mixer(norm2(mbconv(norm1 x)))``: the channel mixer first, and one skip around both, on ``(B, h, w, D)``.

    Both parts have a skip of their own inside. The paper's equations have a skip of x around each, which is
    ``double_skip``; the published code has this option and leaves it off.

    Args:
        mixer: of width D.
        norm: ``"layer_norm_2d"`` (over the whole map) or ``"layer_norm"`` (``DeviationNorm``).
        act: a name of ``vision.layers.ACTIVATIONS``.
        double_skip: as above.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        mixer: Mixer,
        *,
        norm: Norm = "layer_norm_2d",
        act: str = "silu",
        double_skip: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        dim = mixer.dim
        self.norm1, self.norm2 = _norm(norm, dim), _norm(norm, dim)
        self.mlp = InvertedResidual(dim, dim, 2, act=act)
        self.token_mixer = mixer
        self.double_skip = double_skip
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        grid = x.shape[1], x.shape[2]
        y = self.mlp(self.norm1(x))
        if self.double_skip:
            x = y = x + self.drop_path(y)
        y = self.token_mixer(self.norm2(y).flatten(1, 2), grid=grid).unflatten(1, grid)
        return x + self.drop_path(y)


class AFFStage(Stage):
    """A downsampling, AFF blocks, and a pointwise fusion of what came in with what came out.

    Args:
        downsample: an ``InvertedResidual``, or ``nn.Identity()``.
        blocks: at least one.
        dim: channels D of the blocks.
        norm, act: as in ``AFFBlock``.
        fusion: whether there is one (not in the coarse stages of the two largest, unpublished sizes).
    """

    def __init__(
        self,
        downsample: nn.Module,
        blocks: Sequence[nn.Module],
        dim: int,
        *,
        norm: Norm = "layer_norm_2d",
        act: str = "silu",
        fusion: bool = True,
    ) -> None:
        super().__init__(downsample, blocks)
        self.norm = _norm(norm, dim)
        self.proj = ConvNorm(dim, dim)
        self.fusion = ConvNorm(2 * dim, dim, act=act) if fusion else None

    def forward(self, x: Tensor) -> Tensor:
        start = self.downsample(x)
        x = self.proj(self.norm(self.run(start)))
        return x if self.fusion is None else self.fusion(torch.cat((start, x), -1))


class AFFNet(VisionModel):
    """Images ``(B, in_chans, H, W)`` of any size to logits; maps at strides 2, 4, 8, 16 and 32.

    The first two stages are inverted residuals alone, the others have AFF blocks behind one that halves the map.

    Args:
        depths: blocks of each of the five stages, without the one that halves the map.
        dims: channels of each stage.
        mixers: of the last three stages, as ``vision.metaformer.stage_specs`` reads them; AFF with the network's
            activation where absent.
        img_size: noted by the mixers; any other works too.
        stem_dim: channels of the stem, a 3 x 3 convolution with stride 2.
        expand: inner width of the inverted residuals over their own (2 in AFF blocks, always).
        head_hidden_size: channels before pooling; four times the last stage's, at most 960, where absent.
        act: ``"silu"``, ``"relu"`` or ``"gelu"``, everywhere.
        norm: ``"layer_norm_2d"`` or ``"layer_norm"``, see ``AFFBlock``.
        double_skip: see ``AFFBlock``.
        fusion: see ``AFFStage``; one value or one for each of the last three stages.
        output_stride: 32; 16 and 8 (for segmentation) keep the map in the last stage or two. As published, this
            dilates one convolution only, the first depthwise one of the last stage at 8.
        in_chans, num_classes, global_pool, drop_rate: see ``VisionModel`` and ``vision.layers.Head``.
        drop_path_rate: stochastic depth of the last AFF block, the others' rise linearly from 0 (0 as published).
    """

    published: ClassVar = {"microsoft/TokenMixers": lambda model, state: from_published(model, state)}

    def __init__(
        self,
        depths: Sequence[Depth] = (1, 2, 2, 4, 3),
        dims: Sequence[int] = (32, 64, 128, 256, 320),
        mixers: str | Sequence[str] | None = None,
        *,
        img_size: Size = 256,
        stem_dim: Count = 16,
        expand: float = 4.0,
        head_hidden_size: Count | None = None,
        act: str = "silu",
        norm: Norm = "layer_norm_2d",
        double_skip: bool = False,
        fusion: bool | Sequence[bool] = True,
        output_stride: Literal[8, 16, 32] = 32,
        in_chans: Count = 3,
        num_classes: Whole = 1000,
        global_pool: str = "avg",
        drop_rate: Chance = 0.0,
        drop_path_rate: Chance = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, img_size)
        if len(depths) != 5 or len(dims) != 5:
            raise ValueError(f"depths and dims must be five each, one a stage, got {depths!r} and {dims!r}")
        specs = stage_specs(f"aff(act={act!r})" if mixers is None else mixers, depths[2:])
        fusions = per_stage("fusion", fusion, 3)
        rates = drop_paths(drop_path_rate, depths[2:])
        seed = int(torch.randint(2**31, (), device="cpu"))

        self.stem = ImageConvNorm(in_chans, stem_dim, 3, 2, act=act)
        grid = self.stem.out_grid(self.img_size)
        self.stages = nn.ModuleList()
        reductions: list[int] = []
        width = stem_dim
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            stride = 1 if i == 0 or 2**i >= output_stride else 2
            down: nn.Module = nn.Identity()
            if i:
                dilation = 2 if i == 4 and output_stride == 8 else 1
                down = InvertedResidual(width, dim, expand, stride=stride, dilation=dilation, act=act)
                grid, width = down.out_grid(grid), dim
            reductions.append(stride * (reductions[-1] if i else 2))
            if i < 2:
                widths = [width, *[dim] * (depth - 1)]
                self.stages.append(Stage(down, [InvertedResidual(w, dim, expand, act=act) for w in widths]))
                width = dim
                continue
            blocks = []
            for j, spec in enumerate(specs[i - 2]):
                with isolated(seed, f"stages.{i}.blocks.{j}.token_mixer"):
                    mixer = create_mixer(spec, dim, grid)
                rate = rates[i - 2][j]
                blocks.append(AFFBlock(mixer, norm=norm, act=act, double_skip=double_skip, drop_path=rate))
            self.stages.append(AFFStage(down, blocks, dim, norm=norm, act=act, fusion=fusions[i - 2]))

        features = min(4 * width, 960) if head_hidden_size is None else head_hidden_size
        self.norm = ConvNorm(width, features, act=act)
        self.head = Head(features, num_classes, global_pool, None, drop_rate)
        if isinstance(self.head.fc, nn.Linear):  # convolutions keep PyTorch's draws, as published
            nn.init.xavier_uniform_(self.head.fc.weight)
        self.finish(dims, reductions)
        self.num_features = self.head_hidden_size = features


def _norm(name: Norm, dim: int) -> nn.Module:
    return MapNorm(dim, eps=1e-5, bias=True) if name == "layer_norm_2d" else DeviationNorm(dim)


# Published names of the parts, below the stage.
PARTS = [
    (r"\bblock\.", ""),
    (r"\bexp_1x1\.", "expand."),
    (r"\bconv_3x3\.", "depthwise."),
    (r"\bred_1x1\.", "project."),
    (r"\bfilter\.", "token_mixer."),
    (r"\bconv_proj\.", "proj."),
]


def from_published(model: AFFNet, state: State) -> State:
    """Names of microsoft/TokenMixers."""
    patterns = [*PARTS, (r"^conv_1\.", "stem."), (r"^conv_1x1_exp\.", "norm."), (r"^classifier\.", "head.")]
    for i, stage in enumerate(model.stages):
        level = rf"^layer_{i + 1}\."
        if i == 0:
            patterns.append((level, "stages.0.blocks."))
            continue
        patterns.append((rf"{level}0\.", f"stages.{i}.downsample."))
        if isinstance(stage, AFFStage):
            patterns.append((rf"{level}1\.global_rep\.{len(stage.blocks)}\.", f"stages.{i}.norm."))
            patterns.append((rf"{level}1\.global_rep\.", f"stages.{i}.blocks."))
            patterns.append((rf"{level}1\.", f"stages.{i}."))
        else:
            for j in range(len(stage.blocks)):  # type: ignore[arg-type]
                patterns.append((rf"{level}{j + 1}\.", f"stages.{i}.blocks.{j}."))
    return rename(state, patterns)


for _name, _dims, _expand in (
    ("affnet_et", (32, 48, 64, 104, 144), 2.0),
    ("affnet_t", (32, 48, 96, 160, 192), 4.0),
    ("affnet", (32, 64, 128, 256, 320), 4.0),
):
    register(
        _name,
        AFFNet,
        {"dims": _dims, "expand": _expand},
        paper="2307.14008",
        source="microsoft/TokenMixers",
        input_size=(3, 256, 256),
        pool_size=(8, 8),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        crop_pct=0.875,
        interpolation="bilinear",
    )
