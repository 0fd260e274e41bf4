"""S-Mamba: Mamba over the series in both directions, each series one token."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from matmix.ranges import Count, Depth, Whole
from sequence.layers.block import Act
from sequence.series.models.base import Goal, register_series_model
from sequence.series.models.inverted import InvertedModel, around_the_encoder
from sequence.series.published import State, mixer, named, perceptron

DEAD = ("man", "man2", "a")
"""Modules of a published block that nothing calls: two Mambas and an attention of width 11, whatever the model."""


def from_published(module: SMamba, state: State) -> State:
    """Both Mambas of a block, the second of which reads the series from the other end."""
    ours = around_the_encoder(state, "projection" if "projection.weight" in state else "projector")
    ours |= named(state, "encoder.norm", "encoder.norm")
    for at, block in enumerate(module.encoder.blocks):
        mine, theirs = f"encoder.blocks.{at}", f"encoder.attn_layers.{at}"
        for way, name in enumerate(("attention", "attention_r")):
            part: Any = block.mixer.parts[way]  # type: ignore[union-attr, index]
            ours |= mixer(part, state, f"{mine}.mixer.parts.{way}", f"{theirs}.{name}", "state-spaces/mamba")
        ours |= named(state, f"{mine}.mixer_norm", f"{theirs}.norm1")
        ours |= named(state, f"{mine}.mlp_norm", f"{theirs}.norm2")
        ours |= perceptron(block.mlp[:-1], state, f"{mine}.mlp", theirs)  # type: ignore[index]
        for name in state:
            if name.startswith(tuple(f"{theirs}.{dead}." for dead in DEAD)):
                state.get(name)
    return ours


@register_series_model("s_mamba")
class SMamba(InvertedModel):
    """Series as tokens in a row, read by one Mamba from either end; the two are added (Wang et al., arXiv 2403.11144).

    The order of the series counts, unlike in iTransformer. In training nothing of the mixer's output is left out, as
    published. Sizes are those of the published script for ETTh1 but `d_state`, the published default (JustDense: 2).
    `load_published(..., source="wzhwzhwzh0921/S-D-Mamba")` or `"Thrillcrazyer/JustDense"` take their checkpoints, less
    the modules that nothing calls there (`DEAD`).

    Args:
        mixer: "default" is two Mambas of inner width `dim`, with convolutions of two taps over the series.
        d_state: state size of the default mixer.

    The other arguments are those of `InvertedModel`.
    """

    published: ClassVar[dict[str, Any]] = {
        "wzhwzhwzh0921/S-D-Mamba": from_published,
        "Thrillcrazyer/JustDense": from_published,
    }

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
        dim: int = 256,
        depth: Depth = 2,
        hidden: Count = 256,
        d_state: int = 32,
        act: Act = "gelu",
        dropout: float = 0.1,
        normalise: bool | None = None,
        published: bool = False,
    ) -> None:
        if mixer == "default":
            mixer = scan_spec(f"s6(expand=1, d_conv=2, d_state={d_state})")
        super().__init__(
            length=length,
            channels=channels,
            goal=goal,
            horizon=horizon,
            classes=classes,
            marks=marks,
            mixer=mixer,
            dim=dim,
            depth=depth,
            hidden=hidden,
            act=act,
            dropout=dropout,
            normalise=normalise,
            published=published,
        )
        for block in self.encoder.blocks:  # dropout behind the perceptron alone
            block.mlp.append(nn.Dropout(dropout))  # type: ignore[union-attr, operator]
            block.dropout = nn.Dropout(0.0)


def scan_spec(spec: str) -> str:
    """A mixer of its own from either end, added."""
    return f"scan(spec={spec!r}, orders=('rows', 'rows_back'), shared=False, divide=False)"
