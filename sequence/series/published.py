"""Published names of the parts of time-series models, as ours.

Of thuml/Time-Series-Library; Thrillcrazyer/JustDense took the layers over with their names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from sequence.layers.block import Block
from sequence.published import Below
from sequence.series.layers.along_channels import AlongChannels

State = dict[str, Tensor]
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
JUSTDENSE = "Thrillcrazyer/JustDense"
SOURCES = ("thuml/Time-Series-Library", JUSTDENSE)


def of_library(convert: Callable[[Any, State, str], State]) -> dict[str, Callable[[Any, State], State]]:
    """A class's ``published``, of a converter that is told the source as well (mixers have one for each)."""
    return {source: partial(_told, convert, source) for source in SOURCES}


def _told(convert: Callable[[Any, State, str], State], source: str, module: Any, state: State) -> State:
    for name in state:
        if name.endswith("position_embedding.pe"):  # a table, which is computed here
            state.get(name)
    return convert(module, state, source)


def named(state: State, ours: str, theirs: str, kinds: tuple[str, ...] = ("weight", "bias")) -> State:
    """The weights of one layer under our name."""
    return {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for kind in kinds}


def prefixed(part: State, prefix: str) -> State:
    """The weights of a part under its name in the whole."""
    return {f"{prefix}.{name}": value for name, value in part.items()}


def step_embedding(module: Any, state: State, ours: str, theirs: str, *, dead: bool = False) -> State:
    """A ``StepEmbedding``. ``dead``: the published model never reads its time features, and ours may have none."""
    found = {f"{ours}.value.conv.weight": state[f"{theirs}.value_embedding.tokenConv.weight"]}
    marks = f"{theirs}.temporal_embedding.embed.weight"
    if module.marks is not None:
        found[f"{ours}.marks.embed.weight"] = state[marks]
    elif dead:
        state.get(marks)
    return found


def mixer(module: Any, state: State, ours: str, theirs: str, source: str) -> State:
    """A mixer by its own converter; where the source has JustDense's matrices, by that of these.

    Raises:
        ValueError: for one that this source has not.
    """
    if f"{theirs}.matrix_mixer.M" in state:
        source = JUSTDENSE
    known = getattr(type(module), "published", {})
    if source not in known:
        raise ValueError(f"{ours} is a {type(module).__name__}, of which {source} has no weights")
    return prefixed(known[source](module, Below(state, f"{theirs}.")), ours)


def perceptron(module: Any, state: State, ours: str, theirs: str) -> State:
    """Two convolutions of width 1, as linear layers; biases where ours has them."""
    found = {}
    for at, name in (("0", "conv1"), (str(len(module) - 1), "conv2")):
        found[f"{ours}.{at}.weight"] = state[f"{theirs}.{name}.weight"].squeeze(-1)
        if module[int(at)].bias is not None:
            found[f"{ours}.{at}.bias"] = state[f"{theirs}.{name}.bias"]
    return found


def block(module: Block, state: State, ours: str, theirs: str, source: str) -> State:
    """A block of an encoder: ``attention``, ``norm1``, ``conv1``, ``conv2``, ``norm2``."""
    found = mixer(module.mixer, state, f"{ours}.mixer", f"{theirs}.attention", source)
    found |= named(state, f"{ours}.mixer_norm", f"{theirs}.norm1") | named(state, f"{ours}.mlp_norm", f"{theirs}.norm2")
    if isinstance(module.mlp, AlongChannels):
        return found | mixer(module.mlp.mixer, state, f"{ours}.mlp.mixer", f"{theirs}.mixer", source)
    return found | perceptron(module.mlp, state, f"{ours}.mlp", theirs)


def encoder(module: Any, state: State, source: str, norm: str = "encoder.norm") -> State:
    """A ``SeriesEncoder`` at ``encoder``, with a layer norm at its end; "" for ``norm`` leaves that to the caller."""
    found: State = named(state, "encoder.norm", norm) if norm else {}
    for at, part in enumerate(module.blocks):
        found |= block(part, state, f"encoder.blocks.{at}", f"encoder.attn_layers.{at}", source)
    return found
