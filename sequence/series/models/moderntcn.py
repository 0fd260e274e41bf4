"""ModernTCN: depthwise convolutions with large kernels along time, perceptrons over the width and over the series."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from matmix.ops.seed import fork_seed
from matmix.ranges import Chance, Count, Depth, Whole
from sequence.layers.norms import TokenBatchNorm, normed
from sequence.series.layers.encoder import new_seed
from sequence.series.layers.grouped import GroupedPerceptron, SeriesPerceptron
from sequence.series.layers.large_kernel import EachSeries, LargeKernel
from sequence.series.models.base import Goal, register_series_model
from sequence.series.models.staged import StagedModel, around_the_blocks, one_a_stage
from sequence.series.published import BATCH_NORM, State, named


def from_published(module: ModernTCN, state: State) -> State:
    """Names of luodhhh/ModernTCN's code for each goal, without decomposition and with one head for all series."""
    ours = around_the_blocks(module, state)
    for stage, blocks in enumerate(module.stages):
        for at, block in enumerate(blocks.children()):
            mine, theirs = f"stages.{stage}.{at}", f"model.stages.{stage}.blocks.{at}"
            for branch, name in (("conv", "lkb_origin"), ("conv1", "small_conv")):
                part = f"{mine}.mixer.conv.{branch}"
                ours |= named(state, f"{part}.c", f"{theirs}.dw.{name}.conv", ("weight",))
                ours |= named(state, f"{part}.bn", f"{theirs}.dw.{name}.bn", BATCH_NORM)
            ours |= named(state, f"{mine}.norm", f"{theirs}.norm", BATCH_NORM)
            for mlp, name in ((f"{mine}.width", "ffn1"), (f"{mine}.series.mlp", "ffn2")):
                shapes = dict(block.get_submodule(mlp.removeprefix(f"{mine}.")).named_parameters())
                for layer in (1, 2):
                    for kind in ("weight", "bias"):
                        value = state[f"{theirs}.{name}pw{layer}.{kind}"]
                        ours[f"{mlp}.{kind}{layer}"] = value.reshape(shapes[f"{kind}{layer}"].shape)
    return ours


class ModernTCNBlock(nn.Module):
    """`x + series(width(norm(mixer(x))))` of tokens (B, N, C * D), the series the slow axis.

    Args:
        mixer: "default", or the spec of one for each series by itself.
        channels, dim, tokens: C, D and N.
        kernel, small: taps of the default mixer's convolution and of its branch.
        mlp_ratio: hidden units of both perceptrons over what they read.
        dropout: behind every linear map of both.
    """

    def __init__(
        self,
        mixer: str,
        channels: int,
        dim: int,
        tokens: int,
        *,
        kernel: int,
        small: int,
        mlp_ratio: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.mixer: nn.Module
        with fork_seed(new_seed(), "mixer"):  # whatever it draws, the rest starts alike
            if mixer == "default":
                self.mixer = LargeKernel(channels * dim, (tokens,), kernel=kernel, small=small)
            else:
                self.mixer = EachSeries(mixer, channels, dim, (tokens,))
        self.channels = channels
        self.norm = TokenBatchNorm(dim)
        self.width = GroupedPerceptron(channels, dim, mlp_ratio=mlp_ratio, dropout=dropout)
        self.series = SeriesPerceptron(channels, dim, mlp_ratio=mlp_ratio, dropout=dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        series = self.mixer(x, mask=mask).unflatten(2, (self.channels, -1))  # (B, N, C, D)
        every = None if mask is None else mask.unsqueeze(-1).expand(-1, -1, self.channels)
        series = self.dropout(self.width(normed(self.norm, series, every)))
        return x + self.dropout(self.series(series)).flatten(2)


@register_series_model("moderntcn")
class ModernTCN(StagedModel):
    """Patches of each series as tokens, convolutions of each, perceptrons between series (Luo and Wang, ICLR 2024).

    `load_published(..., source="luodhhh/ModernTCN")` takes checkpoints of its code, of which there is one for each goal
    (for anomalies with `published=True`). Sizes are those of its script for ETTh1, which reads 336 steps.

    Args:
        mixer: "default" is a convolution a channel and series, in training with a short branch beside it; else the spec
            of a mixer for each series by itself, all with the same weights.
        kernel, small: taps of both, of every stage.
        mlp_ratio: hidden units of both perceptrons over what they read.
        dropout: behind every linear map of both.

    The other arguments are those of `StagedModel`.
    """

    published: ClassVar[dict[str, Any]] = {"luodhhh/ModernTCN": from_published}

    def __init__(
        self,
        *,
        length: Count,
        channels: Count,
        goal: Goal = "forecast",
        horizon: Whole = 0,
        classes: Whole = 0,
        marks: Whole = 0,
        mixer: str = "default",
        dims: tuple[int, ...] = (64,),
        depths: tuple[Depth, ...] = (1,),
        kernel: tuple[int, ...] = (51,),
        small: tuple[Count, ...] = (5,),
        patch: Count = 8,
        stride: Count = 4,
        downsample: Count = 2,
        mlp_ratio: int = 1,
        revin: bool | None = None,
        affine: bool = False,
        dropout: float = 0.3,
        head_dropout: Chance = 0.0,
        published: bool = False,
    ) -> None:
        one_a_stage(dims, kernel=kernel, small=small)
        super().__init__(
            length=length,
            channels=channels,
            goal=goal,
            horizon=horizon,
            classes=classes,
            marks=marks,
            block=lambda stage, dim, tokens: ModernTCNBlock(
                mixer,
                channels,
                dim,
                tokens,
                kernel=kernel[stage],
                small=small[stage],
                mlp_ratio=mlp_ratio,
                dropout=dropout,
            ),
            dims=dims,
            depths=depths,
            patch=patch,
            stride=stride,
            downsample=downsample,
            revin=revin,
            affine=affine,
            head_dropout=head_dropout,
            published=published,
        )
