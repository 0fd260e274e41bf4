"""Published names of language models, as ours: `matmix.load_published(model, state, source)`.

==========================  ==========================================================================================
`goombalab/hydra`           `BertForMaskedLM`, `BertForSequenceClassification` of hydra/bert, as the trainer saves them
`lxchtan/PoNet`             `PoNetForPreTraining` and the others of models/modeling_ponet.py (tag v1.0)
`huggingface/transformers`  `BertForMaskedLM` and `FNetForMaskedLM`, and their kin
==========================  ==========================================================================================

All are built like BERT and differ in what a layer holds. Every weight of the encoder must have its place. Heads that a
model does not have are passed over: the encoder of a checkpoint with two heads is a model with one, or with none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sequence.published import Below, State

KINDS = ("weight", "bias")
HEADS = ("pooler.", "cls.", "classifier.")
Layer = Callable[[Any, State], State]
"""From one of our blocks and the published weights of a layer to the weights of the block."""


def of_hydra(model: Any, state: State) -> State:
    """Weights of goombalab/hydra's BERT: a mixer and a norm a layer."""
    return _model(model, state, "bert", _hydra_layer)


def of_ponet(model: Any, state: State) -> State:
    """Weights of the pretrained PoNet."""
    return _model(model, state, "ponet", _ponet_layer)


def of_transformers(model: Any, state: State) -> State:
    """Weights of transformers' BERT or FNet, whose layers have names of their own."""
    fourier = any(".fourier." in name for name in state)
    return _model(model, state, *(("fnet", _fnet_layer) if fourier else ("bert", _bert_layer)))


def _model(model: Any, state: State, base: str, layer: Layer) -> State:
    """A whole model, whose encoder has names that begin with `base` where heads stand beside it."""
    if all(name.startswith("model.") for name in state):  # as composer wraps a model
        state = Below(state, "model.")
    wrapped = any(name.startswith(f"{base}.") for name in state)
    body = Below(state, f"{base}.") if wrapped else state
    read, prefix = (model.matmix, "matmix.") if hasattr(model, "matmix") else (model, "")
    ours = {f"encoder.{name}": value for name, value in _encoder(read.encoder, body, layer).items()}
    if read.pooler is not None and read.pooler.dense is not None:
        ours |= _linear("pooler.dense", body, "pooler.dense")
    ours = {f"{prefix}{name}": value for name, value in ours.items()} | _heads(model, state, body)
    for part in (state, body):
        for name in part:
            if name.startswith(HEADS):
                part[name]  # of a head that this model does not have
    return ours


def _encoder(encoder: Any, state: State, layer: Layer) -> State:
    there = "embeddings"
    ours = {"embedding.weight": state[f"{there}.word_embeddings.weight"]}
    if encoder.position is not None:
        ours["position"] = state[f"{there}.position_embeddings.weight"]
    if encoder.types is not None:
        ours["types.weight"] = state[f"{there}.token_type_embeddings.weight"]
    for mine, theirs in (("norm", "LayerNorm"), ("projection", "projection")):
        if hasattr(encoder.stem, mine):
            ours |= _linear(f"stem.{mine}", state, f"{there}.{theirs}")
    if f"{there}.position_ids" in state:  # 0, 1, 2, ...: a buffer that older versions saved
        state[f"{there}.position_ids"]
    for index, block in enumerate(encoder.blocks):
        part = layer(block, Below(state, f"encoder.layer.{index}."))
        ours |= {f"blocks.{index}.{name}": value for name, value in part.items()}
    if block.prenorm:
        ours |= _linear("norm", state, "encoder.norm_f")
    return ours


def _heads(model: Any, state: State, body: State) -> State:
    """Those that the model has, by the names that all of BERT's kin give them."""
    ours: State = {}
    if hasattr(model, "transform"):
        there = "cls.predictions"
        if model.transform is not None:
            ours |= _linear("transform.dense", state, f"{there}.transform.dense")
            ours |= _linear("transform.norm", state, f"{there}.transform.LayerNorm")
        # The bias has two names in some files, and the tied weight stands in some of them.
        biases = [name for name in (f"{there}.bias", f"{there}.decoder.bias") if name in state]
        ours["decoder.bias"] = state[biases[0] if biases else f"{there}.decoder.bias"]
        if model.decoder.weight is not None:
            ours["decoder.weight"] = state[f"{there}.decoder.weight"]
        elif f"{there}.decoder.weight" in state:
            embedding = body["embeddings.word_embeddings.weight"]
            if not torch.equal(state[f"{there}.decoder.weight"], embedding):
                raise ValueError(
                    f"{there}.decoder.weight is not the embedding: build the model with tie_word_embeddings=False"
                )
    if hasattr(model, "relation"):
        ours |= _linear("relation", state, "cls.seq_relationship")
    if hasattr(model, "classifier"):
        ours |= _linear("classifier.linear", state, "classifier")
    return ours


# ------------------------------------------------------------------ layers


def _hydra_layer(block: Any, state: State) -> State:
    return _mixer(block, "goombalab/hydra", Below(state, "layer.mixer.")) | _linear("mixer_norm", state, "layer.norm")


def _bert_layer(block: Any, state: State) -> State:
    attention = _mixer(block, "huggingface/transformers", Below(state, "attention."))
    return attention | _linear("mixer_norm", state, "attention.output.LayerNorm") | _perceptron(block, state)


def _ponet_layer(block: Any, state: State) -> State:
    named = dict(Below(state, "attention.self.").items())
    named |= _linear("ff", state, "attention.output.dense")  # as the code for the Long Range Arena calls it
    pooling = _mixer(block, "lxchtan/PoNet", named)
    return pooling | _linear("mixer_norm", state, "attention.output.LayerNorm") | _perceptron(block, state)


def _fnet_layer(block: Any, state: State) -> State:
    return _linear("mixer_norm", state, "fourier.output.LayerNorm") | _perceptron(block, state)


def _mixer(block: Any, source: str, state: State) -> State:
    known = getattr(type(block.mixer), "published", {})
    if source not in known:
        raise ValueError(f"{type(block.mixer).__name__} loads no weights of {source!r}; it knows: {', '.join(known)}")
    return {f"mixer.{name}": value for name, value in known[source](block.mixer, state).items()}


def _perceptron(block: Any, state: State) -> State:
    last = f"mlp.{len(block.mlp) - 1}"
    return (
        _linear("mlp.0", state, "intermediate.dense")
        | _linear(last, state, "output.dense")
        | _linear("mlp_norm", state, "output.LayerNorm")
    )


def _linear(mine: str, state: State, theirs: str) -> dict[str, Tensor]:
    """Weight and bias of a linear layer or a norm."""
    return {f"{mine}.{kind}": state[f"{theirs}.{kind}"] for kind in KINDS}
