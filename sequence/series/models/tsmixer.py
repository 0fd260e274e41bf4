"""TSMixer: perceptrons along time and across series, in turn."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from matmix.mixers import create_mixer
from matmix.ops.seed import fork_seed
from matmix.ranges import Count, Depth, Whole
from sequence.series.layers.encoder import new_seed
from sequence.series.layers.heads import ClassHead
from sequence.series.layers.normalise import known, normalised, restored
from sequence.series.layers.revin import RevIN
from sequence.series.layers.time_linear import TimeLinear
from sequence.series.models.base import Goal, SeriesModel, register_series_model
from sequence.series.published import State, named

Norm = Literal["none", "batch", "layer"]


def from_tslib(module: TSMixer, state: State) -> State:
    """`model.{block}.temporal` and `.channel`, two linear layers each, and the projection along time."""
    ours = {name: value.unsqueeze(0) for name, value in named(state, "head", "projection").items()}
    for at in range(len(module.blocks)):
        for mine, theirs in (("mixer", "temporal"), ("channel_mixer", "channel")):
            for layer, place in (("fc1", 0), ("fc2", 2)):
                ours |= named(state, f"blocks.{at}.{mine}.{layer}", f"model.{at}.{theirs}.{place}")
    return ours


class TSMixerBlock(nn.Module):
    """`x + mixer(norm(x))` along time, then `x + mixer(norm(x))` across series, of windows (B, L, C).

    Args:
        mixer, channel_mixer: specs; the second one's tokens are series, with the L steps as their channels.
        length, channels: L and C.
        norm: "none", "batch" (each value of the window over the batch) or "layer" (over the window).
        dropout: on what the mixers give.
        seed, name: mixers draw their initial weights under these.
    """

    def __init__(
        self,
        mixer: str,
        channel_mixer: str,
        length: int,
        channels: int,
        norm: Norm,
        dropout: float,
        seed: int,
        name: str,
    ) -> None:
        super().__init__()
        self.norm, self.channel_norm = WindowNorm(norm, length, channels), WindowNorm(norm, length, channels)
        with fork_seed(seed, f"{name}.mixer"):
            self.mixer = create_mixer(mixer, channels, (length,))
        with fork_seed(seed, f"{name}.channel_mixer"):
            self.channel_mixer = create_mixer(channel_mixer, length, (channels,))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.mixer(self.norm(x), mask=mask))
        return x + self.dropout(self.channel_mixer(self.channel_norm(x).mT).mT)


class WindowNorm(nn.Module):
    """A norm of whole windows (B, L, C), L * C numbers each."""

    def __init__(self, kind: Norm, length: int, channels: int) -> None:
        super().__init__()
        if kind not in ("none", "batch", "layer"):
            raise ValueError(f"norm must be 'none', 'batch' or 'layer', got {kind!r}")
        size = length * channels
        self.norm = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[kind](size)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x.flatten(1)).view(x.shape)
        return normed


@register_series_model("tsmixer")
class TSMixer(SeriesModel):
    """Token MLPs along time and across series, with residuals (Chen et al., arXiv 2303.06053), as in TSLib.

    TSLib's has no norm at all, and its forecasts of ETTh2 fail by that (a test MSE of 1.05 at 96 steps, where repeating
    the last value has 0.43); the paper's has a batch norm in front of each mixer, reversible instance normalisation,
    and one layer along time: `norm="batch", revin=True, mixer="mlp(hidden=0, act='relu')"`. `load_published(...,
    source="thuml/Time-Series-Library")` takes TSLib's checkpoints.

    Args:
        length, channels, goal, horizon, classes, marks: see `SeriesModel`; the time of a step is not read.
        mixer: spec of the mixer along time; "default" is `mlp(act="relu")` with `hidden` units.
        channel_mixer: that of the mixer across series; "default" likewise.
        depth, hidden: blocks, and hidden units of the default mixers.
        norm: in front of each mixer, "none", "batch" or "layer".
        revin: normalise windows, with a learned scale and offset a series.
        dropout: on what the mixers give.
    """

    published: ClassVar[dict[str, Any]] = {"thuml/Time-Series-Library": from_tslib}

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
        depth: Depth = 2,
        hidden: int = 512,
        norm: Norm = "none",
        revin: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(length=length, channels=channels, goal=goal, horizon=horizon, classes=classes, marks=marks)
        seed, default = new_seed(), f"mlp(hidden={hidden}, act='relu')"
        mixers = [default if spec == "default" else spec for spec in (mixer, channel_mixer)]
        self.revin = RevIN(channels) if revin else None
        self.blocks = nn.ModuleList(
            TSMixerBlock(mixers[0], mixers[1], length, channels, norm, dropout, seed, f"blocks.{at}")
            for at in range(depth)
        )
        self.head: nn.Module
        with fork_seed(seed, "head"):
            if goal == "classification":
                self.head = ClassHead(length, channels, classes, act="none")
            else:
                self.head = TimeLinear(length, horizon or length)

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
        x, window = normalised(self.revin, x, known(x, observed, mask))
        for block in self.blocks:
            x = block(x, mask)
        if self.goal == "classification":
            scores: Tensor = self.head(x, mask)
            return scores
        steps: Tensor = self.head(x)
        return restored(self.revin, steps, window)
