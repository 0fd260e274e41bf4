"""FFNet for time series: FFNified attention along time, then a convolutional perceptron over series and width."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from matmix.mixers import create_mixer
from matmix.ops.seed import fork_seed
from matmix.ranges import Chance, Count, Depth, Whole
from sequence.ffnet import SeriesChannelMixer
from sequence.published import Below
from sequence.series.layers.encoder import new_seed
from sequence.series.layers.large_kernel import EachSeries
from sequence.series.models.base import Goal, register_series_model
from sequence.series.models.staged import StagedModel, around_the_blocks, one_a_stage
from sequence.series.published import State, prefixed

SOURCE = "ysj9909/FFNet"
OUT = 0.15
"""Published dropout of what a perceptron gives; inside of the token mixer's it is twice that."""


def from_published(module: FFNetTS, state: State) -> State:
    """Names of the repository's code for forecasts, without decomposition and with one head for all series."""
    ours = around_the_blocks(module, state)
    for stage, blocks in enumerate(module.stages):
        for at, block in enumerate(blocks.children()):
            for mine, theirs in (("mixer", "token_mixer"), ("channel_mixer", "channel_mixer")):
                part: Any = block.get_submodule(mine)
                below = Below(state, f"model.stages.{stage}.blocks.{at}.{theirs}.")
                ours |= prefixed(type(part).published[SOURCE](part, below), f"stages.{stage}.{at}.{mine}")
    return ours


class FFNetBlock(nn.Module):
    """A token mixer with a residual, then `SeriesChannelMixer`, of tokens (B, N, C * D), the series the slow axis.

    Args:
        mixer: "default", or the spec of one for each series by itself.
        channels, dim, tokens: C, D and N.
        kernel, small: taps of the convolutions, and of the branch of the channel mixer's.
        mlp_ratio: of the channel mixer.
        dropout: see `FFNetTS`.
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
        self.residual = mixer != "default"  # the default mixer has it inside
        self.mixer: nn.Module
        with fork_seed(new_seed(), "mixer"):  # whatever it draws, the rest starts alike
            if mixer == "default":
                inner = 2 * OUT if dropout else 0.0
                spec = f"ffnified(kernel={kernel}, branches='plain', variates={channels}, dropout={inner})"
                self.mixer = create_mixer(spec, channels * dim, (tokens,))
            else:
                self.mixer = EachSeries(mixer, channels, dim, (tokens,))
        self.channel_mixer = SeriesChannelMixer(
            channels, dim, kernel=kernel, small=small, mlp_ratio=mlp_ratio, dropout=dropout,
            out_dropout=OUT if dropout else 0.0,
        )  # fmt: skip

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed = self.mixer(x, mask=mask)
        out: Tensor = self.channel_mixer(x + mixed if self.residual else mixed, mask)
        return out


@register_series_model("ffnet_ts")
class FFNetTS(StagedModel):
    """FFNet's forecasting model (Yun et al., arXiv 2406.02021): ModernTCN's frame around FFNet's two mixers.

    `load_published(..., source="ysj9909/FFNet")` takes checkpoints of its code, which is for forecasts; for other goals
    the heads are ModernTCN's.

    Args:
        mixer: "default" is `ffnified` over all series, which also mixes these; else the spec of a mixer for each series
            by itself, all with the same weights, with a residual around it.
        kernel, small: taps of the convolutions, and of the short branch in the channel mixer, of every stage.
        mlp_ratio: hidden units of the channel mixer's perceptron over what it reads.
        dropout: of these hidden units; the published scripts have 0.6 to 0.9. Where it is not 0, the rest is as
            published too: 0.3 of the hidden units in the default mixer, 0.15 of what each of the two perceptrons gives.

    The other arguments are those of `StagedModel`.
    """

    published: ClassVar[dict[str, Any]] = {SOURCE: from_published}

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
        dropout: float = 0.6,
        revin: bool | None = None,
        affine: bool = False,
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
            block=lambda stage, dim, tokens: FFNetBlock(
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
