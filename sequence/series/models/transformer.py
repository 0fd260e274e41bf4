"""Transformer, encoder and decoder, as time-series benchmarks have it (arXiv 1706.03762; thuml/Time-Series-Library)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from matmix.mixers import create_mixer
from matmix.mixers.base import drop_padding
from matmix.ops.seed import fork_seed
from matmix.ranges import Count, Depth, Whole
from sequence.layers.block import Act, make_mlp
from sequence.series import published as names
from sequence.series.layers.cross_attention import CrossAttention
from sequence.series.layers.embedding import StepEmbedding
from sequence.series.layers.encoder import SeriesEncoder, attention_spec, block_options, new_seed
from sequence.series.layers.heads import ClassHead
from sequence.series.layers.start import known_steps, marks_of, start_of
from sequence.series.models.base import Goal, SeriesModel, register_series_model


def from_published(model: Transformer, state: names.State, source: str) -> names.State:
    """Published names as ours."""
    unread = model.goal in ("anomaly", "classification")  # the published code reads no time features there
    ours = names.step_embedding(model.embedding, state, "embedding", "enc_embedding", dead=unread)
    ours |= names.encoder(model.encoder, state, source)
    if model.goal != "forecast":
        head = "head.linear" if model.goal == "classification" else "head"
        return ours | names.named(state, head, "projection")
    ours |= names.step_embedding(model.start_embedding, state, "start_embedding", "dec_embedding")
    for at, block in enumerate(model.decoder):
        ours |= decoder_block(block, state, f"decoder.{at}", f"decoder.layers.{at}", source)
    ours |= names.named(state, "decoder_norm", "decoder.norm")
    return ours | names.named(state, "head", "decoder.projection")


@register_series_model("transformer")
class Transformer(SeriesModel):
    """Steps as tokens. An encoder reads the window; to forecast, a decoder reads what is known last and the encoder.

    ``x`` is not normalised, as published: a level that the training data had not is new to it.

    Args:
        length, channels, goal, horizon, classes, marks: as of every model.
        mixer: of the encoder's blocks; "default" is attention with ``heads`` heads.
        decoder_mixer: of the decoder's own tokens; "default" is causal attention.
        dim, depth, hidden: width D, blocks, hidden units of their perceptrons.
        decoder_depth: blocks of the decoder.
        heads: of the default mixers and of cross attention.
        act: activation of the perceptrons.
        dropout: on embeddings, branches, hidden units and attention.
        start_steps: known steps that the decoder begins with; None is half of the length.
        published: read padding as steps like others and leave it out at the end only, as the published code does in
            classification. By default the mixers are told what is padding.
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
        heads: int = 8,
        hidden: int = 2048,
        act: Act = "gelu",
        dropout: float = 0.1,
        start_steps: Whole | None = None,
        published: bool = False,
    ) -> None:
        super().__init__(length=length, channels=channels, goal=goal, horizon=horizon, classes=classes, marks=marks)
        self.start_steps = known_steps(start_steps, length)
        self.reads_padding, seed = published, new_seed()
        spec = attention_spec(dim, heads, dropout) if mixer == "default" else mixer
        self.embedding = StepEmbedding(channels, dim, marks=marks, dropout=dropout)
        self.encoder = SeriesEncoder(spec, dim, depth, hidden, (length,), act=act, dropout=dropout, seed=seed)
        self.head: nn.Module
        if goal == "forecast":
            own = attention_spec(dim, heads, dropout, causal=True) if decoder_mixer == "default" else decoder_mixer
            grid = (self.start_steps + horizon,)
            self.start_embedding = StepEmbedding(channels, dim, marks=marks, dropout=dropout)
            self.decoder = nn.ModuleList(
                DecoderBlock(own, dim, heads, hidden, grid, act, dropout, seed, f"decoder.{at}")
                for at in range(decoder_depth)
            )
            self.decoder_norm = nn.LayerNorm(dim)
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
        tokens = self.encoder(self.embedding(x, marks), seen)
        if self.goal == "classification":
            scores: Tensor = self.head(tokens, mask)
            return scores
        if self.goal == "forecast":
            tokens = self._decode(tokens, x, marks, future_marks, seen, start)[:, -self.horizon :]
        steps: Tensor = self.head(tokens)
        return steps

    def _decode(
        self,
        memory: Tensor,
        x: Tensor,
        marks: Tensor | None,
        future_marks: Tensor | None,
        mask: Tensor | None,
        start: Tensor | None,
    ) -> Tensor:
        """The decoder's tokens (B, start steps + horizon, D)."""
        given = start_of(x, self.start_steps, self.horizon, start)
        future = marks_of(marks, future_marks, given.shape[1] - self.horizon, self.horizon)
        tokens: Tensor = self.start_embedding(given, future)
        for block in self.decoder:
            tokens = block(tokens, memory, mask)
        out: Tensor = self.decoder_norm(tokens)
        return out


class DecoderBlock(nn.Module):
    """``norm(x + mixer(x))``, ``norm(x + cross(x, memory))``, ``norm(x + mlp(x))``.

    Args:
        mixer: spec of the mixer of its own tokens.
        dim, heads, hidden, act, dropout: as of the model.
        grid: of its own tokens.
        seed, name: every part draws its initial weights under `name` and its own.
    """

    def __init__(
        self,
        mixer: str,
        dim: int,
        heads: int,
        hidden: int,
        grid: tuple[int, ...],
        act: Act,
        dropout: float,
        seed: int,
        name: str,
    ) -> None:
        super().__init__()
        with fork_seed(seed, f"{name}.mixer"):
            self.mixer = create_mixer(mixer, dim, grid)
        with fork_seed(seed, f"{name}.cross"):
            self.cross = CrossAttention(dim, heads, dropout=dropout)
        with fork_seed(seed, f"{name}.mlp"):
            self.mlp = make_mlp(dim, hidden, block_options(dim, hidden, act, dropout))
        self.mixer_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D), memory (B, S, D) and its mask (B, S), True = a real token, to (B, L, D)."""
        x = self.mixer_norm(x + self.dropout(self.mixer(x)))
        x = self.cross_norm(x + self.dropout(self.cross(x, memory, mask)))
        out: Tensor = self.mlp_norm(x + self.dropout(self.mlp(x)))
        return out


def decoder_block(module: Any, state: names.State, ours: str, theirs: str, source: str) -> names.State:
    """A block of the published decoder, as ours."""
    found = names.mixer(module.mixer, state, f"{ours}.mixer", f"{theirs}.self_attention", source)
    found |= names.mixer(module.cross, state, f"{ours}.cross", f"{theirs}.cross_attention", source)
    for norm, theirs_norm in (("mixer_norm", "norm1"), ("cross_norm", "norm2"), ("mlp_norm", "norm3")):
        found |= names.named(state, f"{ours}.{norm}", f"{theirs}.{theirs_norm}")
    return found | names.perceptron(module.mlp, state, f"{ours}.mlp", theirs)
