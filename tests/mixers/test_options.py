"""One word for one idea: the options of all mixers, and what is said of the words that they had before."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

import matmix
from matmix.mixers import create_mixer, list_mixers, mixer_info
from matmix.mixers.hydra import Hydra
from matmix.mixers.registry import MixerInfo
from matmix.spec import OPPOSITE, RENAMED

# A new mixer takes its words from here. One that needs a new idea adds the word and its meaning, if none of these fits.
WORDS = {
    # sizes
    "dim": "model width D",
    "grid": "(L,) or (rows, columns)",
    "heads": "number of heads H",
    "householders": "keys, values and strengths of a token, written one after the other",
    "head_dim": "width W of a head",
    "qk_dim": "width of a query and of a key, of each head",
    "expand": "inner width over model width",
    "expand_k": "width of all queries over model width",
    "expand_v": "width of all values over model width",
    "bottleneck": "inner width over model width of an inverted bottleneck around the mixer; None is without",
    "mlp_ratio": "hidden width of a perceptron over the width that it reads",
    "hidden": "hidden units, a number",
    "groups": "sets of weights, each for an equal share of the channels or heads",
    "norm_groups": "groups of channels that are normalised by themselves",
    "d_state": "state size N",
    "d_ssm": "inner channels that go through the state space",
    "d_conv": "taps of the short convolution in front of a product",
    "dt_rank": "rank of the projection to steps",
    "gate_rank": "rank of the projection to decays",
    "kernel": "taps of the convolution that is the product",
    "window": "reach of attention or pooling, in tokens",
    "wrapper": "JustDense's: what stands around the dense matrix",
    "pool": "tokens a side that are averaged before the product",
    "width": "neighbouring channels that make one place of a mixer along the channels",
    "share": "neighbouring channels that read at one distance",
    "raft": "channels that are mixed along with the tokens",
    "codes": "codewords of a codebook",
    "factor": "delays that are kept, over the logarithm of the length",
    "filters": "learned filters that are mixed into one a channel",
    "segments": "segments that a sequence is cut into",
    "variates": "series side by side in the channels",
    "dims": "the channels of every part",
    "max_len": "the longest length or distance that has numbers of its own, or scales the matrix",
    "block": "tokens of a block, where it changes the result",
    "chunk": "tokens of a chunk of the computation; no result depends on it",
    "copies": "how often an initial spectrum is repeated in the state",
    "built": "the grid that weights are kept for; other grids resize them in every forward",
    # what is on
    "causal": "a token sees no later one",
    "data_dependent": "the matrix is made from the tokens, else learned",
    "bias": "biases of the input and output projections",
    "conv_bias": "bias of the short convolution",
    "qkv_bias": "biases of queries, keys and values",
    "proj_bias": "bias of the output projection",
    "proj": "the output projection",
    "out_gate": "the product is multiplied by a gate before the output projection",
    "out_norm": "the product is normalised before the output projection",
    "norm_before_gate": "the order of these two",
    "rotary": "queries and keys are turned by their place",
    "residual": "the mixer norms its tokens and adds them to what comes out",
    "shared": "one set of weights for all orders",
    "real": "real modes",
    "divide": "the mean of the directions, not their sum",
    "D_per_channel": "a skip factor a channel, not a head",
    "learnable_init_states": "a learned state before the first token",
    "negative_eigenvalues": "strengths up to 2",
    "padded_segments": "segments from the padded length, as published",
    "published": "what the published code computes, where it is wrong or starts badly",
    # which one
    "act": "activation, or the attention function",
    "act2": "the activation behind the product; None is without",
    "structure": "class of the matrix",
    "branches": "convolutions side by side",
    "axis": "direction of an image",
    "orders": "scans of the tokens",
    "spec": "a mixer inside",
    "specs": "several mixers inside",
    "resize": "how filters go to another grid",
    "norm": "scaling of a Fourier transform, as in torch.fft",
    "spectrum": "initial eigenvalues of a state matrix",
    "discretization": "of a continuous system",
    "dt_transform": "what makes a step of its parameter",
    "rel_pos_bias": "the bias of a distance in attention",
    # numbers
    "A_floor": "the smallest rate",
    "A_init_range": "initial rates",
    "C_init": "mean square of the initial output weights",
    "commitment": "weight of a quantiser's loss",
    "decay": "of moving averages",
    "drop_path": "chance of a sample to go without the branch",
    "dropout": "in training, the chance of an entry of the matrix to be left out",
    "dt_init_floor": "the smallest initial step",
    "dt_limit": "bounds of a step",
    "dt_max": "the largest initial step",
    "dt_min": "the smallest initial step that is drawn",
    "dt_scale": "scale of the initial projection to steps",
    "eps": "added to the mean square of a norm",
    "fraction": "of the frequencies that are passed on",
    "gate_normalizer": "divides the log of a gate",
    "rope_fraction": "of the states that turn",
    "shrink": "threshold of a softshrink",
}


def own() -> list[MixerInfo]:
    infos = [mixer_info(name) for name in list_mixers()]
    return [info for info in infos if info.cls.__module__.startswith("matmix.")]  # other tests register theirs


def test_mixers_take_their_words_from_one_list() -> None:
    used = {(info.name, option) for info in own() for option in inspect.signature(info.cls).parameters}
    assert sorted((name, option) for name, option in used if option not in WORDS) == []
    assert set(WORDS) == {option for _, option in used}, "a word that no mixer uses"
    new = {word for words in RENAMED.values() for word in words}
    assert new <= set(WORDS) and set(RENAMED) >= OPPOSITE


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hydra(headdim=8)", "headdim is called head_dim here"),
        ("afno(expansion=2)", "expansion is called bottleneck here"),
        ("afno(hidden=2)", "hidden is called mlp_ratio here"),
        ("sep_conv(expansion=2)", "expansion is called expand here"),
        ("mega(chunk=4)", "chunk is called block here"),
        ("s4d(bidirectional=True)", "bidirectional is called causal here, where True was False"),
        ("identity(headdim=8)", "identity has no option 'headdim'; there is none"),
    ],
)
def test_an_old_word_is_answered_by_the_new_one(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mixer(spec, 8)


def test_constructors_say_the_same_and_stay_what_they_were() -> None:
    with pytest.raises(TypeError, match=r"^Hydra has no option 'headdim': headdim is called head_dim here$"):
        Hydra(64, headdim=8)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^Identity has no option 'expand'; known: dim, grid$"):
        matmix.mixer_info("identity").cls(8, expand=2)  # type: ignore[call-arg]
    assert list(inspect.signature(Hydra).parameters)[:3] == ["dim", "grid", "expand"]
    assert Hydra.__init__.__qualname__ == "Hydra.__init__"
    mixer = Hydra(8, head_dim=4, d_state=2)
    for twin in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))):
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), mixer.parameters(), strict=True))
    with torch.device("meta"):
        assert Hydra(8, head_dim=4).in_proj.weight.is_meta
