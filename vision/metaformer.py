"""MetaFormer: one skeleton, any token mixer in each stage or block.

"MetaFormer Baselines for Vision" (arXiv 2210.13452) and "MetaFormer Is Actually What You Need for Vision"
(arXiv 2111.11418): a convolutional stem, stages of blocks (norm, mixer, norm, MLP) with a strided convolution between
them, pooling, a classifier. The families in ``vision/models`` are settings of this class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from matmix.mixers import Mixer, create_mixer, layer_specs, mixer_info, parse_spec
from matmix.ranges import Amount, Chance, Count, Depth, Whole
from vision.base import Size, VisionModel, drop_paths, isolated
from vision.layers import Block, ConvDownsample, ConvStem, Head, Mlp, Stage, make_norm
from vision.layers.patches import PositionEmbedding
from vision.published import State, mixer_states, rename

# Mixers whose linear and convolutional weights the published models draw like all others. The rest know better.
TRUNCATED = ("sep_conv", "attention", "dynamic_filter", "global_filter", "afno")


def stage_specs(mixers: str | Sequence[str], depths: Sequence[int]) -> list[list[str]]:
    """The mixer of every block, stage by stage.

    Args:
        mixers: one mixer for all (``"pooling"``), one a stage (``"pooling, pooling, hydra, attention"``), or stages
            apart by semicolons or as a list, each a pattern over its blocks (``"pooling; hydra*3, attention"``); a
            pattern repeats and must divide the depth of its stage.
        depths: blocks of every stage.
    """
    if isinstance(mixers, str):
        parts = [part for part in mixers.split(";") if part.strip()]
        if len(parts) == 1:
            calls = parse_spec(mixers)
            if len(calls) not in (1, len(depths)):
                raise ValueError(
                    f"mixers={mixers!r} names {len(calls)} mixers for {len(depths)} stages; it takes one, one a stage, "
                    f"or a pattern for each stage, stages apart by ';'"
                )
            parts = [str(call) for call in (calls if len(calls) > 1 else calls * len(depths))]
    else:
        parts = list(mixers)
    if len(parts) != len(depths):
        raise ValueError(
            f"mixers must be one, or one for each of {len(depths)} stages, got {mixers!r} for {len(parts)}"
        )
    return [
        [str(call) for call in layer_specs(part, depth)] if depth else []
        for part, depth in zip(parts, depths, strict=True)
    ]


def with_options(spec: str, name: str, **options: Any) -> str:
    """A spec of the mixer ``name`` with these options where it does not say them itself; another mixer's as it is."""
    (call,) = parse_spec(spec)
    return spec if call.name != name else str(replace(call, options=tuple({**options, **dict(call.options)}.items())))


def per_stage(name: str, value: Any, stages: int) -> list[Any]:
    """One value for all stages, or a sequence of one a stage."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * stages
    if len(value) != stages:
        raise ValueError(f"{name} must be one value or {stages}, one a stage, got {value!r}")
    return list(value)


class MetaFormer(VisionModel):
    """Images ``(B, in_chans, H, W)`` to logits ``(B, num_classes)``; any size and aspect ratio that the mixers allow.

    The map of stage i has the size floor((H + 1) / 4), halved i times and rounded up.

    Args:
        depths: blocks of each stage.
        dims: channels of each stage.
        mixers: see ``stage_specs``; names and options are those of ``matmix.create_mixer``.
        img_size: the size that mixers of fixed length are built for, an int or ``(H, W)``; ``resize_`` changes it.
        in_chans, num_classes, global_pool: see ``VisionModel`` and ``vision.layers.Head``.
        norm: norm of the blocks, a name of ``vision.layers.NORMS`` or one a stage.
        down_norm: norm of the stem (behind it) and of the downsamplings (before them), None for none.
        final_norm: ``"pooled"`` normalises the pooled vector (eps 1e-6); a name of ``NORMS`` the map before pooling.
        head: ``"linear"`` or ``"mlp"``.
        mlp_ratio, act, bias: hidden width over the channels (one or one a stage), activation and biases of the channel
            MLP.
        layer_scale: initial value of the vectors on the branches, one or one a stage; None for none.
        res_scale: the same for the vectors on the residual connections.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout in the channel MLP.
        drop_path_rate: stochastic depth of the last block; the others' rates rise linearly from 0.
        feature_norms: the published backbones for dense prediction: every map that ``features_only=True`` gives goes
            through a norm of its own (that of ``final_norm``), the next stage gets it without.
        pos_embed: a position embedding, zero at first, in front of the first stage that has attention; it is tied to
            ``img_size``.
    """

    published: ClassVar = {
        "sail-sg/metaformer": lambda model, state: from_baselines(model, state, "sail-sg/metaformer"),
        "okojoalg/dfformer": lambda model, state: from_baselines(model, state, "okojoalg/dfformer"),
        "timm": lambda model, state: from_timm(model, state),
    }

    def __init__(
        self,
        depths: Sequence[Depth] = (2, 2, 6, 2),
        dims: Sequence[int] = (64, 128, 320, 512),
        mixers: str | Sequence[str] = "pooling",
        *,
        img_size: Size = 224,
        in_chans: Count = 3,
        num_classes: Whole = 1000,
        global_pool: str = "avg",
        norm: str | Sequence[str] = "layer",
        down_norm: str | None = "layer",
        final_norm: str = "pooled",
        head: Literal["linear", "mlp"] = "mlp",
        mlp_ratio: Amount | Sequence[Amount] = 4.0,
        act: str = "star_relu",
        bias: bool = False,
        layer_scale: float | Sequence[float | None] | None = None,
        res_scale: float | Sequence[float | None] | None = (None, None, 1.0, 1.0),
        drop_rate: Chance = 0.0,
        proj_drop_rate: Chance = 0.0,
        drop_path_rate: Chance = 0.0,
        feature_norms: bool = False,
        pos_embed: bool = False,
    ) -> None:
        super().__init__(num_classes, in_chans, img_size)
        depths, dims, stages = tuple(depths), tuple(dims), len(depths)
        if len(dims) != stages:
            raise ValueError(f"dims must have an entry per stage of depths={depths!r}, got {dims!r}")
        specs = stage_specs(mixers, depths)
        ratios = per_stage("mlp_ratio", mlp_ratio, stages)
        norms = per_stage("norm", norm, stages)
        layer_scales = per_stage("layer_scale", layer_scale, stages)
        if res_scale == (None, None, 1.0, 1.0) and stages != 4:  # the default, for any number of stages
            res_scale = [None if i < 2 else 1.0 for i in range(stages)]
        res_scales = per_stage("res_scale", res_scale, stages)
        rates = drop_paths(drop_path_rate, depths)
        attends = [any(parse_spec(spec)[0].name == "attention" for spec in stage) for stage in specs]
        if pos_embed and True not in attends[1:]:
            raise ValueError(f"pos_embed=True needs attention in a stage after the first, got mixers={mixers!r}")
        seed = int(torch.randint(2**31, (), device="cpu"))

        self.stem = ConvStem(in_chans, dims[0], down_norm)
        grid = self.stem.out_grid(self.img_size)
        self.stages = nn.ModuleList()
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            downsample: nn.Module = nn.Identity()
            if i:
                downsample = down = ConvDownsample(dims[i - 1], dim, down_norm)
                grid = down.out_grid(grid)
                if pos_embed and attends.index(True) == i:
                    down.positions = PositionEmbedding(dim, grid)
                    nn.init.zeros_(down.positions.pos_embed)
            blocks = []
            for j in range(depth):
                with isolated(seed, f"stages.{i}.blocks.{j}.token_mixer"):
                    mixer = create_mixer(specs[i][j], dim, grid)
                    self.init_mixer(mixer)
                blocks.append(
                    Block(
                        mixer,
                        Mlp(dim, int(ratios[i] * dim), act, bias, proj_drop_rate),
                        make_norm(norms[i], dim),
                        make_norm(norms[i], dim),
                        drop_path=rates[i][j],
                        layer_scale=layer_scales[i],
                        res_scale=res_scales[i],
                    )
                )
            self.stages.append(Stage(downsample, blocks))

        def last_norm(dim: int) -> nn.Module:
            return nn.LayerNorm(dim, eps=1e-6) if final_norm == "pooled" else make_norm(final_norm, dim)

        pooled = final_norm == "pooled"
        self.norm = nn.Identity() if pooled else last_norm(dims[-1])
        after = last_norm(dims[-1]) if pooled else None
        self.head = Head(dims[-1], num_classes, global_pool, after, drop_rate, head)
        self.init_weights()
        self.finish(
            dims,
            [4 * 2**i for i in range(stages)],
            [last_norm(dim) for dim in dims] if feature_norms else (),
        )

    def init_weights(self) -> None:
        """The published draws of everything but the mixers: normal of deviation 0.02, zero biases."""
        for name, module in self.named_modules():
            if "token_mixer" not in name and isinstance(module, nn.Linear | nn.Conv2d):
                truncated(module)

    def init_mixer(self, mixer: Mixer) -> None:
        """The published draws of a mixer, where the published models have it."""
        if type(mixer) in [mixer_info(name).cls for name in TRUNCATED]:
            for module in mixer.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    truncated(module)


def truncated(module: nn.Linear | nn.Conv2d) -> None:
    """Weights normal of deviation 0.02, bias zero."""
    nn.init.trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def from_baselines(model: MetaFormer, state: State, source: str) -> State:
    """Names of sail-sg/metaformer and okojoalg/dfformer."""
    patterns = [
        (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
        (r"^downsample_layers\.0\.post_norm\.", "stem.norm."),
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d+)\.pre_norm\.", r"stages.\1.downsample.norm."),
        (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
        (r"\.(res_scale|layer_scale)([12])\.scale$", r".\1\2"),
        (r"^norm(\d)\.", r"feature_norms.\1."),
        (r"^head\.", "head.fc."),
        (r"^norm\.", "head.norm."),
    ]
    return mixer_states(model, rename(state, patterns), source)


def from_timm(model: MetaFormer, state: State) -> State:
    """Names of timm's ``metaformer.py``, whose channel layers are convolutions where the map is NCHW."""
    patterns = [(r"\.(res_scale|layer_scale)([12])\.scale$", r".\1\2")]
    if not isinstance(model.norm, nn.Identity):
        patterns.append((r"^head\.norm\.", "norm."))
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    renamed = rename(state, patterns)
    return {
        name: _flat(value) if value.dim() > len(shapes.get(name, value.shape)) else value
        for name, value in renamed.items()
    }


def _flat(weight: Tensor) -> Tensor:
    """The matrix of a 1 x 1 convolution."""
    return weight.flatten(1)
