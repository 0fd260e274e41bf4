"""FFNet: FFNified attention, "MetaMixer is all you need", arXiv 2406.02021.

Weights: https://github.com/ysj9909/FFNet/releases/tag/v1.0, ``ffnet_{1,2,3,3_384,4_384,seg}.pth.tar`` and, trained
with a teacher, ``ffnet_{1,2,3}_distillation.pth.tar``. Parameters and MACs in its tables are those of the
re-parameterised network, which ``fuse_`` gives::

    model = vision.create_model("ffnet_2")
    state = torch.load("ffnet_2.pth.tar", weights_only=True)["state_dict"]
    matmix.load_published(model, state, source="ysj9909/FFNet")
    model.eval().fuse_()

``ffnet_seg`` is another network of the paper: its backbone for semantic segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import nn

from matmix.mixers import create_mixer
from matmix.mixers.ffnified import FFNified
from matmix.ops.reparam import BranchedConv
from matmix.ranges import Amount, Chance, Count, Depth, Whole
from vision.base import Size, VisionModel, drop_paths, isolated
from vision.layers import Block, Head, Stage
from vision.layers.conv_norm import ConvNorm
from vision.layers.ffnet import ConvMerging, ConvMlp, MapBatchNorm, NormedSkip, PatchMerging, Stem
from vision.metaformer import per_stage, stage_specs, truncated
from vision.published import State, mixer_states, rename
from vision.registry import register

SOURCE = "ysj9909/FFNet"
WEIGHTS = f"https://github.com/{SOURCE}/releases/download/v1.0"


class FFNet(VisionModel):
    """Images ``(B, in_chans, H, W)`` of any size to logits; maps at strides 4, 8, 16 and 32.

    A block is ``x + l1 mixer(x)``, then ``x + l2 mlp(x)``, without norms before its parts: the batch norms are inside,
    behind the convolutions, and vanish in ``fuse_``.

    Args:
        depths: blocks of each stage.
        dims: channels of each stage; each a multiple of the one before.
        mixers: as ``vision.metaformer.stage_specs`` reads them; FFNified attention with 3 taps in the first two
            stages and 7 in the others where absent.
        img_size: noted by the mixers; any other works too.
        stem_dim: channels inside of the stem.
        kernel: taps of the convolution before the channel MLP, one or one a stage; a 3 x 3 branch goes with 7.
        mlp_ratio: width of the channel MLP over the channels, one or one a stage.
        layer_scale: initial value of the vectors on both branches, one or one a stage; None for none.
        feature_norms: a layer norm for each map of ``features_only=True``, as in the published backbones.
        in_chans, num_classes, global_pool, drop_rate: see ``VisionModel`` and ``vision.layers.Head``.
        drop_path_rate: stochastic depth of the last block; the others' rates rise linearly from 0.
    """

    published: ClassVar = {SOURCE: lambda model, state: from_published(model, state)}
    default_mixers = "ffnified(kernel=3), ffnified(kernel=3), ffnified(kernel=7), ffnified(kernel=7)"

    def __init__(
        self,
        depths: Sequence[Depth] = (2, 2, 8, 2),
        dims: Sequence[int] = (80, 160, 320, 640),
        mixers: str | Sequence[str] | None = None,
        *,
        img_size: Size = 256,
        stem_dim: Count = 64,
        kernel: int | Sequence[int] = 3,
        mlp_ratio: Amount | Sequence[Amount] = 3.0,
        layer_scale: float | Sequence[float | None] | None = None,
        feature_norms: bool = False,
        in_chans: Count = 3,
        num_classes: Whole = 1000,
        global_pool: str = "avg",
        drop_rate: Chance = 0.0,
        drop_path_rate: Chance = 0.0,
    ) -> None:
        super().__init__(num_classes, in_chans, img_size)
        if len(depths) != 4 or len(dims) != 4:
            raise ValueError(f"depths and dims must be four each, one a stage, got {depths!r} and {dims!r}")
        specs = stage_specs(self.default_mixers if mixers is None else mixers, depths)
        ratios, scales = per_stage("mlp_ratio", mlp_ratio, 4), per_stage("layer_scale", layer_scale, 4)
        kernels = per_stage("kernel", kernel, 4)
        rates = drop_paths(drop_path_rate, depths)
        seed = int(torch.randint(2**31, (), device="cpu"))

        self.stem: Stem = self.make_stem(in_chans, stem_dim, dims[0])
        grid = self.stem.out_grid(self.img_size)
        self.stages = nn.ModuleList()
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            down: nn.Module = nn.Identity()
            if i:
                down = self.make_merging(dims[i - 1], dim)
                grid = down.out_grid(grid)  # type: ignore[operator]
            blocks = []
            for j in range(depth):
                with isolated(seed, f"stages.{i}.blocks.{j}.token_mixer"):
                    mixer = create_mixer(specs[i][j], dim, grid)
                    if isinstance(mixer, FFNified):
                        _draw(mixer)
                mlp = self.make_mlp(dim, int(ratios[i] * dim), kernels[i])
                blocks.append(Block(mixer, mlp, nn.Identity(), nn.Identity(), rates[i][j], scales[i]))
            self.stages.append(Stage(down, blocks))
        self.norm, self.head = self.make_head(dims[-1], num_classes, global_pool, drop_rate)
        for name, module in self.named_modules():
            if "token_mixer" not in name:
                _draw(module, deep=False)
        norms = [nn.LayerNorm(dim, eps=1e-6) for dim in dims] if feature_norms else ()
        self.finish(dims, [4, 8, 16, 32], norms)
        self.num_features = self.head_hidden_size = self.head.dim

    def make_stem(self, in_chans: int, width: int, dim: int) -> Stem:
        """Image to the first map."""
        return Stem(in_chans, (width, dim), (2, 2), active=1)

    def make_merging(self, dim: int, out_dim: int) -> nn.Module:
        """A map to one of half the size."""
        return PatchMerging(dim, out_dim)

    def make_mlp(self, dim: int, hidden: int, kernel: int) -> nn.Module:
        """The channel mixer."""
        return ConvMlp(dim, hidden, kernel, pair=kernel == 7)

    def make_head(self, dim: int, num_classes: int, global_pool: str, drop_rate: float) -> tuple[nn.Module, Head]:
        """What comes before pooling, and the rest."""
        return MapBatchNorm(dim), Head(dim, num_classes, global_pool, None, drop_rate)

    def fuse_(self) -> Self:
        """Re-parameterise, in place and for good: every batch norm but the last goes into a convolution, and so do
        branches and the skip of the downsamplings. Same outputs in evaluation, fewer parameters; train before."""
        for module in list(self.modules()):
            if isinstance(module, ConvNorm | NormedSkip | FFNified):
                module.fuse_()
            elif isinstance(module, ConvMlp | PatchMerging) and isinstance(module.conv, BranchedConv):
                module.conv = module.conv.fused()
        return self


class SegHead(Head):
    """Pooling and a classifier of two layers with a layer norm and hard swish between them (``ffnet_seg``)."""

    hidden = 1280

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        super().reset(num_classes, global_pool)
        if num_classes:
            hidden = self.hidden
            first, last = nn.Linear(self.dim, hidden), nn.Linear(hidden, num_classes)
            self.fc = nn.Sequential(first, nn.LayerNorm(hidden, eps=1e-6), nn.Hardswish(), last)
            for module in (first, last):
                truncated(module)

    @property
    def classifier(self) -> str:
        """The name of the last linear layer, below the head."""
        return "fc.3"


class FFNetSeg(FFNet):
    """The paper's network for semantic segmentation: four convolutions in the stem, strip-shaped branches around the
    large kernels, other downsamplings, and a head (for its pre-training) that widens before it pools. See ``FFNet``."""

    published: ClassVar = {SOURCE: lambda model, state: from_published(model, state)}
    default_mixers = ", ".join(f"ffnified(kernel={k}, branches='strips')" for k in (3, 3, 9, 9))

    def make_stem(self, in_chans: int, width: int, dim: int) -> Stem:
        return Stem(in_chans, (width, width, dim, dim), (2, 1, 1, 2), active=2)

    def make_merging(self, dim: int, out_dim: int) -> nn.Module:
        return ConvMerging(dim, out_dim)

    def make_mlp(self, dim: int, hidden: int, kernel: int) -> nn.Module:
        return ConvMlp(dim, hidden, kernel, pair=False)

    def make_head(self, dim: int, num_classes: int, global_pool: str, drop_rate: float) -> tuple[nn.Module, Head]:
        return ConvNorm(dim, 1024, act="hard_swish"), SegHead(1024, num_classes, global_pool, None, drop_rate)


def _draw(module: nn.Module, deep: bool = True) -> None:
    """The published initial weights: normal of deviation 0.02, zero biases."""
    for part in module.modules() if deep else (module,):
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
            truncated(part)  # type: ignore[arg-type]


# Published names of the parts of a block; batch norms and branches as they are, or fused.
BLOCK_PARTS = [
    (r"\btoken_mixer\.0\.main\.", "token_mixer."),
    (r"\btoken_mixer\.0\.layer_scale$", "layer_scale1"),
    (r"\bchannel_mixer\.layer_scale$", "layer_scale2"),
    (r"\bchannel_mixer\.main\.conv\.(c|bn)\.", r"mlp.conv.conv.\1."),
    (r"\bchannel_mixer\.main\.", "mlp."),
    (r"\bproj\.1\.conv\.bn\.", "skip.norm."),
    (r"\bproj\.1\.(conv\.c\.)?", "skip.linear."),
]
MERGING_PARTS = [(r"\bproj\.0\.", "conv.")]
SEG_MERGING_PARTS = [
    (r"\bproj\.(\d)\.bn\.", r"conv\1.norm."),
    (r"\bproj\.(\d)\.(c\.)?", r"conv\1.conv."),
    (r"\bconv0\.", "conv1."),
]


def from_published(model: FFNet, state: State) -> State:
    """Names of ysj9909/FFNet, of a network in training form or re-parameterised."""
    seg = isinstance(model, FFNetSeg)
    patterns = [*(SEG_MERGING_PARTS if seg else MERGING_PARTS), *BLOCK_PARTS]
    for place, name in zip((0, 2, 4, 5) if seg else (0, 2), model.stem.names, strict=True):
        patterns.append((rf"^patch_embed\.{place}\.bn\.", f"stem.{name}.norm."))
        patterns.append((rf"^patch_embed\.{place}\.(c\.)?", f"stem.{name}.conv."))
    for i, stage in enumerate(model.stages):
        if i:
            patterns.append((rf"^stages\.{i}\.0\.", f"stages.{i}.downsample."))
        for j in range(len(stage.blocks)):  # type: ignore[arg-type]
            patterns.append((rf"^stages\.{i}\.{j + (i > 0)}\.", f"stages.{i}.blocks.{j}."))
    if seg:
        patterns += [
            (r"^head1\.0\.bn\.", "norm.norm."),
            (r"^head1\.0\.(c\.)?", "norm.conv."),
            (r"^head2\.", "head.fc."),
        ]
    else:
        patterns += [(r"^norm\.", "norm.bn."), (r"^head\.", "head.fc.")]
    patterns.append((r"^norm(\d)\.", r"feature_norms.\1."))
    return mixer_states(model, flattened(rename(state, patterns)), SOURCE)


def flattened(state: State) -> State:
    """Pointwise convolutions as linear layers, scales ``(C, 1, 1)`` as vectors."""

    def linear(name: str) -> bool:
        return name.endswith((".fc1.weight", ".fc2.weight", "skip.linear.weight"))

    return {
        name: value.flatten(1) if linear(name) else value.flatten() if "layer_scale" in name else value
        for name, value in state.items()
    }


for _name, _options, _crop in (
    ("ffnet_1", {"depths": (2, 2, 8, 2), "dims": (80, 160, 320, 640), "kernel": 3}, 0.9),
    ("ffnet_2", {"depths": (3, 3, 15, 3), "dims": (88, 176, 352, 704), "kernel": 7}, 0.9),
    ("ffnet_3", {"depths": (4, 4, 22, 5), "dims": (96, 192, 384, 768), "kernel": 7, "layer_scale": 1e-6}, 0.95),
    ("ffnet_4", {"depths": (4, 4, 27, 3), "dims": (128, 256, 512, 1024), "kernel": 7, "layer_scale": 1e-6}, 0.95),
):
    _size = 384 if _name == "ffnet_4" else 256
    register(
        _name,
        FFNet,
        {**_options, "img_size": _size},
        paper="2406.02021",
        source=SOURCE,
        checkpoint=f"{WEIGHTS}/{_name}{'_384' if _size == 384 else ''}.pth.tar",
        input_size=(3, _size, _size),
        pool_size=(_size // 32, _size // 32),
        crop_pct=_crop,
        first_conv="stem.conv1.conv",
    )

register(
    "ffnet_seg",
    FFNetSeg,
    {"depths": (3, 4, 18, 5), "dims": (96, 192, 384, 768), "mlp_ratio": 4.0, "layer_scale": 1e-5, "img_size": 224},
    paper="2406.02021",
    source=SOURCE,
    checkpoint=f"{WEIGHTS}/ffnet_seg.pth.tar",
    first_conv="stem.conv1.conv",
    classifier="head.fc.3",
)
