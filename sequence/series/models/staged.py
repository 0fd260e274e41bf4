"""What ModernTCN and FFNet have in common: patches of each series, stages of blocks over all series, one head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from matmix.ops.seed import fork_seed
from matmix.ranges import Chance, Count, Depth, Whole
from sequence.layers.norms import TokenBatchNorm
from sequence.series.layers.downsample import Downsample
from sequence.series.layers.encoder import new_seed
from sequence.series.layers.heads import ClassHead, FlattenHead, PatchHead
from sequence.series.layers.normalise import known, normalised, normalises, restored
from sequence.series.layers.patches import PatchEmbedding
from sequence.series.layers.revin import RevIN
from sequence.series.models.base import Goal, SeriesModel
from sequence.series.published import BATCH_NORM, State, named

DEAD = ("te_patch", "lat_layer", "smooth_layer", "up_sample_conv")
"""Modules of the published code that nothing calls: time features, and a fusion of stages."""
HEADS = {
    "forecast": "model.head.linear", "imputation": "model.head_imputation2.linear", "anomaly": "model.head_dection1",
    "classification": "model.head_class",
}  # fmt: skip
Build = Callable[[int, int, int], nn.Module]  # stage, width, number of tokens -> a block of tokens (B, N, C * width)


class StagedModel(SeriesModel):
    """Patches of each series as tokens, stages of blocks, a head.

    What goes with the goal is as in ModernTCN's code: forecasts and filled windows come of all tokens of a series, the
    steps that anomalies are looked for in of one token each, classes of all tokens of all series. A batch norm stands
    behind the patches for forecasts and classes alone.

    Args:
        length, channels, goal, horizon, classes, marks: see `SeriesModel`; the time of a step is not read.
        block: builds a block of a stage.
        dims, depths: width of a token and blocks, of every stage.
        patch, stride: steps of a patch, and from one to the next; the last value is repeated patch - stride times.
        downsample: tokens that become one between two stages.
        revin: normalise windows; None, as published: but not for a classifier.
        affine: with a learned scale and offset a series, but not for imputation.
        head_dropout: on what a head over all tokens of a series gives, or in front of the classifier.
        published: what each token gives for anomalies is a whole patch, as published, so that with stride < patch it
            stands elsewhere than what the token read; else as many steps as bring all tokens to the window.
    """

    def __init__(
        self,
        *,
        length: Count,
        channels: Count,
        goal: Goal,
        horizon: Whole,
        classes: Whole,
        marks: Whole,
        block: Build,
        dims: tuple[int, ...],
        depths: tuple[Depth, ...],
        patch: Count,
        stride: Count,
        downsample: Count,
        revin: bool | None,
        affine: bool,
        head_dropout: Chance,
        published: bool,
    ) -> None:
        super().__init__(length=length, channels=channels, goal=goal, horizon=horizon, classes=classes, marks=marks)
        if len(dims) != len(depths) or not dims:
            raise ValueError(f"dims and depths must have one number a stage, got {dims} and {depths}")
        self.norm = RevIN(channels, affine=affine and goal != "imputation") if normalises(revin, goal) else None
        seed = new_seed()
        with fork_seed(seed, "embed"):
            self.embed = PatchEmbedding(
                dims[0], patch=patch, stride=stride, pad=patch - stride, bias=True, position=False
            )
            self.embed_norm = TokenBatchNorm(dims[0]) if goal in ("forecast", "classification") else nn.Identity()
        tokens = self.embed.tokens(length)
        self.downsamples, self.stages = nn.ModuleList(), nn.ModuleList()
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            with fork_seed(seed, f"stage.{stage}"):
                if stage:
                    self.downsamples.append(Downsample(dims[stage - 1], dim, downsample))
                    tokens = self.downsamples[-1].tokens(tokens)  # type: ignore[operator]
            blocks = nn.ModuleList()
            for at in range(depth):
                with fork_seed(seed, f"stage.{stage}.{at}"):
                    blocks.append(block(stage, dim, tokens))
            self.stages.append(blocks)
        self.dim = dims[-1]
        self.head: nn.Module
        with fork_seed(seed, "head"):
            if goal == "classification":
                self.head = ClassHead(channels * tokens, dims[-1], classes, dropout=head_dropout)
            elif goal == "anomaly":
                self.head = PatchHead(tokens, dims[-1], length, patch if published else -(-length // tokens))
            else:
                self.head = FlattenHead(tokens, dims[-1], horizon or length, dropout=head_dropout)

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
        tokens = self.embed_norm(self.embed(x.mT.flatten(0, 1)))
        tokens = tokens.unflatten(0, (len(x), self.channels)).transpose(1, 2)  # (B, N, C, D)
        real = None if mask is None else self.embed.real(mask)
        for stage, blocks in enumerate(self.stages):
            if stage:
                down: Any = self.downsamples[stage - 1]
                tokens, real = down(tokens), None if real is None else down.real(real)
            flat = tokens.flatten(2)
            for block in blocks:  # type: ignore[attr-defined]
                flat = block(flat, real)
            tokens = flat.unflatten(2, (self.channels, -1))
        series = tokens.transpose(1, 2)
        if self.goal == "classification":
            every = None if real is None else real.repeat(1, self.channels)
            scores: Tensor = self.head(series.flatten(1, 2), every)
            return scores
        steps: Tensor = self.head(series)
        return restored(self.norm, steps, window)


def one_a_stage(dims: tuple[int, ...], **given: tuple[int, ...]) -> None:
    """Refuse options that have not as many numbers as there are stages.

    Raises:
        ValueError: for the first of them.
    """
    for word, numbers in given.items():
        if len(numbers) != len(dims):
            raise ValueError(f"{word} must have one number a stage, as dims={dims}, got {numbers}")


def around_the_blocks(module: StagedModel, state: State) -> State:
    """Published names of all but the blocks. What nothing calls there (time features, multi-scale fusion, layers of
    stages that are not there) is left out."""
    if isinstance(module.embed_norm, TokenBatchNorm):
        ours = named(state, "embed_norm", "model.downsample_layers.0.1", BATCH_NORM)
        ours |= named(state, "embed.embed", "model.downsample_layers.0.0")
        ours["embed.embed.weight"] = ours["embed.embed.weight"].squeeze(1)
    else:
        ours = named(state, "embed.embed", "model.downsample_layers.0")
    for at in range(len(module.downsamples)):
        ours |= named(state, f"downsamples.{at}.norm", f"model.downsample_layers.{at + 1}.0", BATCH_NORM)
        part = named(state, f"downsamples.{at}.reduce", f"model.downsample_layers.{at + 1}.1")
        weight = part[f"downsamples.{at}.reduce.weight"]  # (E, D, factor)
        ours |= part | {f"downsamples.{at}.reduce.weight": weight.mT.flatten(1)}
    if module.norm is not None and module.norm.weight is not None:
        ours |= {f"norm.{kind}": state[f"model.revin_layer.affine_{kind}"] for kind in ("weight", "bias")}
    dead = [*DEAD, *(f"downsample_layers.{at}" for at in range(len(module.stages), 4))]
    if module.goal != "forecast":  # heads and scales of others are made there, and not called
        dead += ["head", *(() if module.goal == "anomaly" else ("revin_layer",))]
    for name in state:
        if name.startswith(tuple(f"model.{part}." for part in dead)):
            state.get(name)
    ours |= named(state, "head.linear", HEADS[module.goal])
    if module.goal == "classification":
        # There the tokens of a series are the fast axis, here the width of a token.
        weight = ours["head.linear.weight"].unflatten(1, (module.channels, module.dim, -1))
        ours |= {"head.linear.weight": weight.mT.flatten(1)}
    return ours
