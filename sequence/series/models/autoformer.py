"""Autoformer: blocks that take the trend out of what they read (arXiv 2106.13008; thuml/Time-Series-Library)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from matmix.mixers import create_mixer
from matmix.mixers.base import drop_padding
from matmix.ops.seed import fork_seed
from matmix.ranges import Count, Depth, Whole
from matmix.spec import layer_specs
from sequence.layers.block import ACTS, Act
from sequence.series import published as names
from sequence.series.layers.cross_correlation import CrossCorrelation
from sequence.series.layers.decomposition import Decomposition
from sequence.series.layers.embedding import StepEmbedding
from sequence.series.layers.encoder import new_seed
from sequence.series.layers.heads import ClassHead
from sequence.series.layers.season_norm import SeasonNorm
from sequence.series.layers.start import known_steps, marks_of
from sequence.series.layers.tokens import CircularConv
from sequence.series.models.base import Goal, SeriesModel, register_series_model


def from_published(model: Autoformer, state: names.State, source: str) -> names.State:
    """Published names as ours."""
    unread = model.goal in ("anomaly", "classification")  # the published code reads no time features there
    ours = names.step_embedding(model.embedding, state, "embedding", "enc_embedding", dead=unread)
    for at, block in enumerate(model.encoder):
        own, theirs = f"encoder.{at}", f"encoder.attn_layers.{at}"
        ours |= names.mixer(block.mixer, state, f"{own}.mixer", f"{theirs}.attention", source)
        ours |= names.perceptron(block.mlp, state, f"{own}.mlp", theirs)
    ours |= names.named(state, "norm.norm", "encoder.norm.layernorm")
    if model.goal != "forecast":
        head = "head.linear" if model.goal == "classification" else "head"
        return ours | names.named(state, head, "projection")
    ours |= names.step_embedding(model.start_embedding, state, "start_embedding", "dec_embedding")
    for at, block in enumerate(model.decoder):
        own, theirs = f"decoder.{at}", f"decoder.layers.{at}"
        ours |= names.mixer(block.mixer, state, f"{own}.mixer", f"{theirs}.self_attention", source)
        ours |= names.mixer(block.cross, state, f"{own}.cross", f"{theirs}.cross_attention", source)
        ours |= names.perceptron(block.mlp, state, f"{own}.mlp", theirs)
        ours[f"{own}.trend.conv.weight"] = state[f"{theirs}.projection.weight"]
    ours |= names.named(state, "decoder_norm.norm", "decoder.norm.layernorm")
    return ours | names.named(state, "head", "decoder.projection")


@register_series_model("autoformer")
class Autoformer(SeriesModel):
    """Steps as tokens, mixed by auto-correlation; every branch is followed by a moving average that is taken away.

    To forecast, a decoder begins with the last steps of season and trend of the window, the season going on with
    zeros, the trend with the mean, and adds the trends that its blocks take away to the latter. ``start`` is not read
    but for its number of known steps: what the decoder begins with is found from x.

    The published ``n_heads`` changes nothing (all channels have one correlation), so there is no such option.

    Args:
        length, channels, goal, horizon, classes, marks: as of every model.
        mixer: of the encoder's blocks; "default" is auto-correlation.
        decoder_mixer: of the decoder's own tokens; "default" is auto-correlation.
        dim, depth, hidden: width D, blocks, hidden units of their perceptrons.
        decoder_depth: blocks of the decoder.
        kernel: steps of the moving average, odd.
        decoder_kernel: that of the decoder's blocks; None is the same.
        factor: delays that auto-correlation keeps, over ln L.
        act: activation of the perceptrons.
        dropout: on embeddings, branches and hidden units.
        start_steps: known steps that the decoder begins with; None is half of the length.
        published: read padding as steps like others and leave it out at the end only, in classification; and choose
            delays in training by the mean over the batch, one choice for all. By default each sample has its own in
            training as in evaluation, and padding is zeros to every mixer.
    """

    published: ClassVar[dict[str, Any]] = names.of_library(from_published)

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
        decoder_mixer: str = "default",
        dim: int = 512,
        depth: Depth = 2,
        decoder_depth: Depth = 1,
        hidden: int = 2048,
        kernel: int = 25,
        decoder_kernel: Count | None = None,
        factor: float = 3.0,
        act: Act = "gelu",
        dropout: float = 0.1,
        start_steps: Whole | None = None,
        published: bool = False,
    ) -> None:
        super().__init__(length=length, channels=channels, goal=goal, horizon=horizon, classes=classes, marks=marks)
        self.start_steps = known_steps(start_steps, length)
        if act not in ACTS:
            raise ValueError(f"act must be one of {', '.join(ACTS)}, got {act!r}")
        self.reads_padding, seed = published, new_seed()
        own = f"auto_correlation(factor={factor}, published={published})"
        specs = layer_specs(own if mixer == "default" else mixer, depth)
        self.embedding = StepEmbedding(channels, dim, marks=marks, position=False, dropout=dropout)
        self.encoder = nn.ModuleList(
            DecomposingBlock(str(spec), dim, hidden, (length,), kernel, act, dropout, seed, f"encoder.{at}")
            for at, spec in enumerate(specs)
        )
        self.norm = SeasonNorm(dim)
        self.head: nn.Module
        if goal == "forecast":
            around = kernel if decoder_kernel is None else decoder_kernel
            grid = (self.start_steps + horizon,)
            self.decomposition = Decomposition(around)
            self.start_embedding = StepEmbedding(channels, dim, marks=marks, position=False, dropout=dropout)
            self.decoder = nn.ModuleList(
                DecomposingDecoderBlock(
                    CrossCorrelation(dim, factor=factor, published=published),
                    own if decoder_mixer == "default" else decoder_mixer,
                    dim, channels, hidden, grid, around, act, dropout, seed, f"decoder.{at}",
                )
                for at in range(decoder_depth)
            )  # fmt: skip
            self.decoder_norm = SeasonNorm(dim)
        if goal == "classification":
            self.head = ClassHead(length, dim, classes, dropout=dropout)
        else:
            self.head = nn.Linear(dim, channels)

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
        self.check(x, marks, mask=mask, observed=observed)
        if observed is not None:
            x = x.masked_fill(~observed, 0)
        seen = None if self.reads_padding else mask
        x = drop_padding(x, seen)
        tokens = self.embedding(x, marks)
        for block in self.encoder:
            tokens = block(tokens, seen)
        tokens = self.norm(tokens) if seen is None else self.norm(tokens, seen)
        if self.goal == "classification":
            scores: Tensor = self.head(tokens, mask)
            return scores
        if self.goal == "forecast":
            return self._forecast(tokens, x, marks, future_marks, start)
        steps: Tensor = self.head(tokens)
        return steps

    def _forecast(
        self, memory: Tensor, x: Tensor, marks: Tensor | None, future_marks: Tensor | None, start: Tensor | None
    ) -> Tensor:
        """The sum of season and trend over the horizon."""
        steps, horizon = self.start_steps, self.horizon
        if start is not None:
            steps = start.shape[1] - horizon
            if start.dim() != 3 or not 0 <= steps <= self.length:
                raise ValueError(f"start must be (B, 0 to {self.length} + {horizon}, C), got {tuple(start.shape)}")
        season, trend = (part[:, self.length - steps :] for part in self.decomposition(x))
        season = torch.cat((season, x.new_zeros(len(x), horizon, self.channels)), 1)
        trend = torch.cat((trend, x.mean(1, keepdim=True).expand(-1, horizon, -1)), 1)
        tokens = self.start_embedding(season, marks_of(marks, future_marks, steps, horizon))
        for block in self.decoder:
            tokens, taken = block(tokens, memory)
            trend = trend + taken
        out: Tensor = (self.head(self.decoder_norm(tokens)) + trend)[:, -horizon:]
        return out


class DecomposingBlock(nn.Module):
    """``x = season(x + mixer(x))``, ``x = season(x + mlp(x))``; season is what a moving average leaves.

    Args:
        mixer: its spec.
        dim, hidden, act, dropout: as of the model.
        grid: shape of the token axis.
        kernel: steps of the moving average.
        seed, name: every part draws its initial weights under `name` and its own.
    """

    def __init__(
        self,
        mixer: str,
        dim: int,
        hidden: int,
        grid: tuple[int, ...],
        kernel: int,
        act: Act,
        dropout: float,
        seed: int,
        name: str,
    ) -> None:
        super().__init__()
        with fork_seed(seed, f"{name}.mixer"):
            self.mixer = create_mixer(mixer, dim, grid)
        with fork_seed(seed, f"{name}.mlp"):
            self.mlp = perceptron(dim, hidden, act, dropout)
        self.mixer_season, self.mlp_season = Decomposition(kernel), Decomposition(kernel)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D) and (B, L) bool, True = a real step, to (B, L, D). Padding is zeros to the averages."""
        x, _ = self.mixer_season(drop_padding(x + self.dropout(self.mixer(x, mask=mask)), mask))
        season: Tensor = self.mlp_season(drop_padding(x + self.dropout(self.mlp(x)), mask))[0]
        return season


class DecomposingDecoderBlock(nn.Module):
    """The same with cross correlation between mixer and perceptron; it gives the trends that it took away too.

    Args:
        cross: reads the encoder's tokens.
        channels: C, series that the trend is of.
        mixer, dim, hidden, grid, kernel, act, dropout, seed, name: as of ``DecomposingBlock``.
    """

    def __init__(
        self,
        cross: nn.Module,
        mixer: str,
        dim: int,
        channels: int,
        hidden: int,
        grid: tuple[int, ...],
        kernel: int,
        act: Act,
        dropout: float,
        seed: int,
        name: str,
    ) -> None:
        super().__init__()
        with fork_seed(seed, f"{name}.mixer"):
            self.mixer = create_mixer(mixer, dim, grid)
        with fork_seed(seed, f"{name}.mlp"):
            self.mlp = perceptron(dim, hidden, act, dropout)
        self.cross = cross
        self.trend = CircularConv(dim, channels)
        self.mixer_season, self.cross_season, self.mlp_season = (Decomposition(kernel) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D) and memory (B, S, D) to tokens (B, L, D) and the trend (B, L, C)."""
        x, first = self.mixer_season(x + self.dropout(self.mixer(x)))
        x, second = self.cross_season(x + self.dropout(self.cross(x, memory)))
        x, third = self.mlp_season(x + self.dropout(self.mlp(x)))
        return x, self.trend(first + second + third)


def perceptron(dim: int, hidden: int, act: Act, dropout: float) -> nn.Sequential:
    """Two linear layers without biases, an activation and dropout between them."""
    inner = [nn.Linear(dim, hidden, bias=False), ACTS[act](), nn.Dropout(dropout)]
    return nn.Sequential(*inner, nn.Linear(hidden, dim, bias=False))
