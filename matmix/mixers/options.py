"""The options of mixers and models: one word for one idea, its meaning and its bounds.

A constructor's annotations say the kind of an option (a switch, a whole number, a number, one of several words), this
list its bounds, where the annotation has none. Both are checked once, when a mixer or model is built, before its own
constructor runs. What hangs on several options (a divisor of another) or on more than bounds (an odd number of taps) a
mixer checks itself.

Kinds hold in every package, bounds in this one. A new mixer takes its words from here. One that needs a new idea adds
the word, if none of these fits.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from matmix.ranges import Allowed, allowed, hints, refuse
from matmix.spec import unknown_option

OURS = ("matmix", "vision", "sequence")
"""Packages whose constructors take the bounds of a word from here."""

# Upper bounds are far beyond use; behind them sizes overflow within PyTorch.
COUNT = {"least": 1.0, "most": 1e7}
SIZE = {"least": 0.0, "most": 1e7}
RATIO = {"above": 0.0, "most": 1e6}
AMOUNT = {"least": 0.0, "most": 1e6}
CHANCE = {"least": 0.0, "below": 1.0}
SHARE = {"least": 0.0, "most": 1.0}
PART = {"above": 0.0, "most": 1.0}


class Option(NamedTuple):
    """What a word means, and the bounds of its numbers."""

    meaning: str
    bounds: dict[str, float]


def _words(bounds: dict[str, float], **meanings: str) -> dict[str, Option]:
    return {name: Option(meaning, bounds) for name, meaning in meanings.items()}


OPTIONS: dict[str, Option] = {
    **_words(
        COUNT,
        dim="model width D",
        heads="number of heads H",
        householders="keys, values and strengths of a token, written one after the other",
        head_dim="width W of a head",
        qk_dim="width of a query and of a key, of each head",
        groups="sets of weights, each for an equal share of the channels or heads",
        norm_groups="groups of channels that are normalised by themselves",
        d_state="state size N",
        d_ssm="inner channels that go through the state space",
        d_conv="taps of the short convolution in front of a product",
        dt_rank="rank of the projection to steps",
        gate_rank="rank of the projection to decays",
        kernel="taps of the convolution that is the product",
        window="reach of attention or pooling, in tokens",
        pool="tokens a side that are averaged before the product",
        width="neighbouring channels that make one place of a mixer along the channels",
        share="neighbouring channels that read at one distance",
        raft="channels that are mixed along with the tokens",
        codes="codewords of a codebook",
        filters="learned filters that are mixed into one a channel",
        segments="segments that a sequence is cut into",
        variates="series side by side in the channels",
        dims="the channels of every part",
        max_len="the longest length or distance that has numbers of its own, or scales the matrix",
        block="tokens of a block, where it changes the result",
        chunk="tokens of a chunk of the computation; no result depends on it",
        copies="how often an initial spectrum is repeated in the state",
    ),
    **_words(
        SIZE,
        hidden="hidden units, a number",
    ),
    **_words(
        RATIO,
        expand="inner width over model width",
        expand_k="width of all queries over model width",
        expand_v="width of all values over model width",
        bottleneck="inner width over model width of an inverted bottleneck around the mixer; None is without",
        mlp_ratio="hidden width of a perceptron over the width that it reads",
        factor="delays that are kept, over the logarithm of the length",
        A_init_range="initial rates",
        dt_max="the largest initial step",
        dt_min="the smallest initial step that is drawn",
        gate_normalizer="divides the log of a gate",
    ),
    **_words(
        AMOUNT,
        A_floor="the smallest rate",
        commitment="weight of a quantiser's loss",
        dt_init_floor="the smallest initial step",
        dt_limit="bounds of a step",
        dt_scale="scale of the initial projection to steps",
        eps="added to the mean square of a norm",
        shrink="threshold of a softshrink",
    ),
    **_words(
        CHANCE,
        drop_path="chance of a sample to go without the branch",
        dropout="in training, the chance of an entry of the matrix to be left out",
    ),
    **_words(
        SHARE,
        decay="of moving averages",
    ),
    **_words(
        PART,
        fraction="of the frequencies that are passed on",
        rope_fraction="of the states that turn",
    ),
    **_words(
        {},
        grid="(L,) or (rows, columns)",
        wrapper="JustDense's: what stands around the dense matrix",
        built="the grid that weights are kept for; other grids resize them in every forward",
        causal="a token sees no later one",
        data_dependent="the matrix is made from the tokens, else learned",
        bias="biases of the input and output projections",
        conv_bias="bias of the short convolution",
        qkv_bias="biases of queries, keys and values",
        proj_bias="bias of the output projection",
        proj="the output projection",
        out_gate="the product is multiplied by a gate before the output projection",
        out_norm="the product is normalised before the output projection",
        norm_before_gate="the order of these two",
        rotary="queries and keys are turned by their place",
        residual="the mixer norms its tokens and adds them to what comes out",
        shared="one set of weights for all orders",
        real="real modes",
        divide="the mean of the directions, not their sum",
        D_per_channel="a skip factor a channel, not a head",
        learnable_init_states="a learned state before the first token",
        negative_eigenvalues="strengths up to 2",
        padded_segments="segments from the padded length, as published",
        published="what the published code computes, where it is wrong or starts badly",
        act="activation, or the attention function",
        act2="the activation behind the product; None is without",
        structure="class of the matrix",
        branches="convolutions side by side",
        axis="direction of an image",
        orders="scans of the tokens",
        spec="a mixer inside",
        specs="several mixers inside",
        resize="how filters go to another grid",
        norm="scaling of a Fourier transform, as in torch.fft",
        spectrum="initial eigenvalues of a state matrix",
        discretization="of a continuous system",
        dt_transform="what makes a step of its parameter",
        rel_pos_bias="the bias of a distance in attention",
        C_init="mean square of the initial output weights",
    ),
}


def checking_options(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that refuses an option that it does not have, by the error of specs that says what it is called,
    and a value that its annotation and the bounds of the word do not allow."""
    signature = inspect.signature(init)
    parameters = list(signature.parameters.values())[1:]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    placed = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    swallows = any(p.kind is p.VAR_KEYWORD for p in parameters)
    ours = init.__module__.partition(".")[0] in OURS

    @functools.cache
    def kinds() -> dict[str, Allowed]:  # late: a class may be annotated by one that comes after it
        found = {
            name: allowed(kind, OPTIONS[name].bounds if ours and name in OPTIONS else {}, lists=True)
            for name, kind in hints(names, init.__annotations__, init.__globals__).items()
        }
        return {name: kind for name, kind in found.items() if kind is not None}

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **options: Any) -> None:
        name = type(self).__name__
        for option in () if swallows else options:
            if option not in names:
                raise TypeError(unknown_option(name, option, names))
        for option, value in (options | dict(zip(placed, args, strict=False))).items():  # too many: the constructor's
            kind = kinds().get(option)
            if kind is not None and not kind.holds(value):
                raise refuse(f"{name}: {option}", kind, value)
        init(self, *args, **options)

    return checked
