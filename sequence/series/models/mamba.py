"""Mamba over the steps of a window, as TSLib and JustDense have it: one layer, or blocks with norms and residuals."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from matmix.mixers import create_mixer
from matmix.ops.seed import fork_seed
from matmix.ranges import Count, Depth, Whole
from matmix.spec import layer_specs
from sequence.series.layers.embedding import StepEmbedding
from sequence.series.layers.encoder import new_seed
from sequence.series.layers.heads import ClassHead
from sequence.series.layers.normalise import InstanceNorm, known, normalised, restored
from sequence.series.models.base import Goal, SeriesModel, register_series_model
from sequence.series.published import State, mixer, named, of_library, step_embedding

MAMBA_SSM = "state-spaces/mamba"


def from_published(module: Mamba | MambaSimple, state: State, source: str) -> State:
    """Step embedding, layers by the names of mamba_ssm, and head."""
    ours = step_embedding(module.embed, state, "embed", "embedding", dead=True)
    if isinstance(module, Mamba):
        ours |= mixer(module.mixer, state, "mixer", "mamba", MAMBA_SSM)
    else:
        ours |= named(state, "norm_out", "norm", ("weight",))
        for at, block in enumerate(module.blocks):
            ours |= mixer(block.mixer, state, f"blocks.{at}.mixer", f"layers.{at}.mixer", MAMBA_SSM)
            ours |= named(state, f"blocks.{at}.norm", f"layers.{at}.norm", ("weight",))
    if module.goal == "forecast":
        return ours | named(state, "head", "out_layer", ("weight",))
    return ours | named(state, "head.linear" if module.goal == "classification" else "head", "projection")


class StepModel(SeriesModel):
    """Steps as tokens, and the output read off each of them: a forecast stands where its inputs stood.

    Args: see `Mamba`.
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
        dim: int,
        dropout: float,
        published: bool,
    ) -> None:
        super().__init__(length=length, channels=channels, goal=goal, horizon=horizon, classes=classes, marks=marks)
        if horizon > length:
            raise ValueError(
                f"{type(self).__name__}: horizon must be at most length, since forecasts stand at the steps that are "
                f"read, got horizon={horizon} with length={length}"
            )
        self.reads_padding = published
        self.norm = InstanceNorm() if goal == "forecast" else None
        self.seed = new_seed()
        with fork_seed(self.seed, "embed"):
            reads = marks if goal in ("forecast", "imputation") else 0
            self.embed = StepEmbedding(channels, dim, marks=reads, dropout=dropout)
        self.head: nn.Module
        with fork_seed(self.seed, "head"):
            if goal == "classification":
                self.head = ClassHead(length, dim, classes, dropout=dropout)
            else:
                self.head = nn.Linear(dim, channels, bias=goal != "forecast")

    def mix(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens (B, L, D) to tokens (B, L, D)."""
        raise NotImplementedError

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
        read = None if self.reads_padding else mask
        x, window = normalised(self.norm, x, known(x, observed, read))
        tokens = self.mix(self.embed(x, marks), read)
        if self.goal == "classification":
            scores: Tensor = self.head(tokens, mask)
            return scores
        steps: Tensor = self.head(tokens[:, -self.horizon :] if self.horizon else tokens)
        return restored(self.norm, steps, window)


@register_series_model("mamba")
class Mamba(StepModel):
    """One Mamba layer between embedding and head, without a residual and a norm (TSLib's and JustDense's `Mamba`).

    A forecast is read off the last `horizon` steps of the window, so `length` must be at least `horizon`; the published
    scripts have both equal. Windows are normalised for forecasts alone. `load_published(...,
    source="Thrillcrazyer/JustDense")` or `"thuml/Time-Series-Library"` take their checkpoints. Sizes are those of the
    scripts.

    Args:
        length, channels, goal, horizon, classes, marks: see `SeriesModel`.
        mixer: its spec, over the steps; "default" is Mamba.
        dim: model width.
        d_state, d_conv, expand: of the default mixer (the published code calls the first one `d_ff`).
        dropout: on embedded steps, and in front of the classifier.
        published: padded steps are read as values but by the classifier, as in the published code; else they are 0 and
            the mixer does not see them. Either way the first step embeds the last one: the embedding wraps round.
    """

    published: ClassVar[dict[str, Any]] = of_library(from_published)

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
        dim: int = 128,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dropout: float = 0.1,
        published: bool = False,
    ) -> None:
        super().__init__(
            length=length, channels=channels, goal=goal, horizon=horizon, classes=classes, marks=marks, dim=dim,
            dropout=dropout, published=published,
        )  # fmt: skip
        with fork_seed(self.seed, "mixer"):
            self.mixer = create_mixer(_spec(mixer, d_state, d_conv, expand), dim, (length,))

    def mix(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        return self.mixer(tokens, mask=mask)


@register_series_model("mamba_simple")
class MambaSimple(StepModel):
    """`x + mamba(norm(x))` several times and a norm (TSLib's `MambaSimple`); all else is as in `Mamba`.

    Args:
        depth: blocks. The other arguments are those of `Mamba`.
    """

    published: ClassVar[dict[str, Any]] = of_library(from_published)

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
        dim: int = 128,
        depth: Depth = 2,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dropout: float = 0.1,
        published: bool = False,
    ) -> None:
        super().__init__(
            length=length, channels=channels, goal=goal, horizon=horizon, classes=classes, marks=marks, dim=dim,
            dropout=dropout, published=published,
        )  # fmt: skip
        self.blocks = nn.ModuleList(
            NormedMixer(str(spec), dim, length, self.seed, f"blocks.{at}")
            for at, spec in enumerate(layer_specs(_spec(mixer, d_state, d_conv, expand), depth))
        )
        self.norm_out = nn.RMSNorm(dim, eps=1e-5)

    def mix(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, mask)
        out: Tensor = self.norm_out(tokens)
        return out


class NormedMixer(nn.Module):
    """`x + mixer(norm(x))` of tokens (B, L, D)."""

    def __init__(self, mixer: str, dim: int, length: int, seed: int, name: str) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        with fork_seed(seed, f"{name}.mixer"):
            self.mixer = create_mixer(mixer, dim, (length,))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + self.mixer(self.norm(x), mask=mask)


def _spec(mixer: str, d_state: int, d_conv: int, expand: int) -> str:
    """The default mixer, or the one that is asked for."""
    return f"s6(d_state={d_state}, d_conv={d_conv}, expand={expand})" if mixer == "default" else mixer
