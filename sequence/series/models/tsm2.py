"""TSM2: MambaMixer for time series, a selective scan along time and one across series, over weighted averages.

Behrouz, Santacatterina and Zabih, arXiv 2403.19888, section 5. No code and no sizes were published, and the paper calls
its results preliminary (MSE of ETTh1 at 96 steps from 512: 0.375; a replication by others found 0.417). This is a
reading; where the paper is silent or disagrees with itself, the choice is:

- The mixer along time reads the patches of one series, unidirectional, as the text has it (figure 3 draws a scan back,
  figure 6 does not): `s6`. The mixer across series reads those of one patch, in both directions, each with a
  convolution and a selection of its own, added: `vim(divide=False)`.
- The averages (`matmix.ops.averages`) are plain scalars that start as blocks in a row.
- The paper writes no residual connection, but MambaMixer is to have VMamba's blocks as a special case, which have one:
  each mixer is `z + mixer(norm z)`. `residual=False` takes the equations by the letter.
- The norm over time and series that the text asks for stands once, behind the blocks: over all patches, series and
  channels of a window, with a scale and an offset a channel. The norms in front of mixers are layer norms.
- Windows are normalised by each series' mean and deviation (`revin`), of which the paper says nothing: TSMixer, on
  which the model is built, does so.
- Static and future features have no part in it.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from matmix.mixers import create_mixer
from matmix.ops.averages import WeightedAverages
from matmix.ops.seed import fork_seed
from matmix.ranges import Count, Depth, Whole
from matmix.spec import layer_specs
from sequence.series.layers.encoder import new_seed
from sequence.series.layers.heads import ClassHead, FlattenHead
from sequence.series.layers.normalise import known, normalised, normalises, restored
from sequence.series.layers.patches import PatchEmbedding
from sequence.series.layers.revin import RevIN
from sequence.series.models.base import Goal, SeriesModel, register_series_model


class AxisMixer(nn.Module):
    """`z + dropout(mixer(norm z))` along one axis of tokens (B, N, C, D): the patches of a series, or the series.

    Args:
        mixer: its spec.
        dim, tokens: D, and how many tokens the axis has.
        across: the axis is that of the series.
        residual: add the input.
        dropout: on what the mixer gives.
    """

    def __init__(self, mixer: str, dim: int, tokens: int, *, across: bool, residual: bool, dropout: float) -> None:
        super().__init__()
        self.across, self.residual = across, residual
        self.norm = nn.LayerNorm(dim)
        self.mixer = create_mixer(mixer, dim, (tokens,))
        self.dropout = nn.Dropout(dropout)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens, and a mask (B, N) of patches, which counts along time."""
        along = z if self.across else z.transpose(1, 2)
        rows = self.norm(along).flatten(0, 1)
        every = None if mask is None or self.across else mask.repeat_interleave(z.shape[2], 0)
        mixed = self.dropout(self.mixer(rows, mask=every)).view(along.shape)
        mixed = mixed if self.across else mixed.transpose(1, 2)
        return z + mixed if self.residual else mixed


@register_series_model("tsm2")
class TSM2(SeriesModel):
    """Patches of each series; blocks of a mixer along time and one across series, each over averages of all before.

    Args:
        length, channels, goal, horizon, classes, marks: see `SeriesModel`; the time of a step is not read.
        mixer: spec of the mixer along time, "default" is `s6`.
        channel_mixer: that of the mixer across series, "default" is `vim(divide=False)`.
        dim, depth: width and blocks (the paper searched, and gives none).
        d_state: state size of the default mixers.
        patch, stride: steps of a patch, and from one to the next.
        residual: around each mixer.
        revin: normalise windows; None: but not for a classifier.
        dropout: on what the mixers give.
    """

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
        channel_mixer: str = "default",
        dim: int = 32,
        depth: Depth = 2,
        d_state: int = 16,
        patch: Count = 16,
        stride: Count = 8,
        residual: bool = True,
        revin: bool | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(length=length, channels=channels, goal=goal, horizon=horizon, classes=classes, marks=marks)
        self.norm = RevIN(channels, affine=False) if normalises(revin, goal) else None
        seed = new_seed()
        with fork_seed(seed, "embed"):
            self.embed = PatchEmbedding(dim, patch=patch, stride=stride, bias=True, position=False)
        tokens = self.embed.tokens(length)
        time = f"s6(d_state={d_state})" if mixer == "default" else mixer
        across = f"vim(d_state={d_state}, divide=False)" if channel_mixer == "default" else channel_mixer
        self.time_mixers, self.channel_mixers = nn.ModuleList(), nn.ModuleList()
        for at, (one, other) in enumerate(zip(layer_specs(time, depth), layer_specs(across, depth), strict=True)):
            with fork_seed(seed, f"time.{at}"):
                part = AxisMixer(str(one), dim, tokens, across=False, residual=residual, dropout=dropout)
                self.time_mixers.append(part)
            with fork_seed(seed, f"channel.{at}"):
                part = AxisMixer(str(other), dim, channels, across=True, residual=residual, dropout=dropout)
                self.channel_mixers.append(part)
        self.averages = WeightedAverages(depth)
        self.out_norm = nn.GroupNorm(1, dim)
        self.head: nn.Module
        with fork_seed(seed, "head"):
            if goal == "classification":
                self.head = ClassHead(channels * tokens, dim, classes)
            else:
                self.head = FlattenHead(tokens, dim, horizon or length)

    def forward(
        self,
        x: Tensor,
        marks: Tensor | None = None,
        future_marks: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        observed: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """See `SeriesModel.forward`."""
        self.check(x, marks, mask=mask, observed=observed)
        x, window = normalised(self.norm, x, known(x, observed, mask))
        real = None if mask is None else self.embed.real(mask)
        tokens = self.embed(x.mT.flatten(0, 1)).unflatten(0, (len(x), self.channels)).transpose(1, 2)  # (B, N, C, D)

        def block(at: int) -> Callable[[Tensor, Callable[[Tensor], Tensor]], tuple[Tensor, Tensor]]:
            def run(z: Tensor, join: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
                token = self.time_mixers[at](z, real)
                return token, self.channel_mixers[at](join(token))

            return run

        tokens = self.averages(tokens, [block(at) for at in range(len(self.time_mixers))])[1][-1]
        series = self.out_norm(tokens.permute(0, 3, 2, 1)).permute(0, 2, 3, 1)  # (B, C, N, D)
        if self.goal == "classification":
            scores: Tensor = self.head(series.flatten(1, 2), None if real is None else real.repeat(1, self.channels))
            return scores
        steps: Tensor = self.head(series)
        return restored(self.norm, steps, window)
