"""The models that PoNet's code runs on Long Range Arena, composed from our mixers: blocks, and whole classifiers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from matmix import create_mixer, load_published
from matmix.mixers import Mixer
from tests.fixtures import load_fixture

State = dict[str, Tensor]


def part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def norm(x: Tensor, state: State, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def linear(x: Tensor, state: State, name: str) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def mixer_of(config: dict[str, Any], state: State) -> Mixer:
    kind, dim, heads = config["attn_type"], config["transformer_dim"], config["num_head"]
    if kind == "fnet":
        return create_mixer("fnet", dim).double()  # it leaves the projections of its checkpoint alone
    spec = {
        "softmax": f"attention(head_dim={config['head_dim']}, qkv_bias=True, proj_bias=True)",
        "ponet": f"ponet(heads={heads}, segments={config['segment_num']}, padded_segments=True)",
    }[kind]
    return load_published(create_mixer(spec, dim).double(), part(state, "mha."), "lxchtan/PoNet")


def mix(config: dict[str, Any], state: State, x: Tensor, mask: Tensor) -> Tensor:
    """What each does at masked tokens: FNet reads them, PoNet leaves them zero before its projection, and attention
    shows them to nobody but keeps what they see."""
    kind, mixer = config["attn_type"], mixer_of(config, state)
    if kind == "fnet":
        return mixer(x)
    if kind == "ponet":
        return mixer(x, mask=mask) + ~mask.unsqueeze(-1) * state["mha.ff.bias"]
    matrix, values, rest = mixer.project(x, mixer._context(x, None, mask))
    return mixer.merge(matrix.matmul(values), rest)


def block(config: dict[str, Any], state: State, x: Tensor, mask: Tensor) -> Tensor:
    x = x + mix(config, state, norm(x, state, "norm1"), mask)
    return x + linear(F.gelu(linear(norm(x, state, "norm2"), state, "mlpblock.0")), state, "mlpblock.3")


@pytest.mark.parametrize("kind", ["fnet", "ponet", "softmax"])
def test_published_block(kind: str) -> None:
    fixture = load_fixture(f"sequence/lra_block_{kind}")
    fixture.check(block(fixture.config, fixture.state(), fixture.input("X"), fixture.input("mask").bool()))


@pytest.mark.parametrize("kind", ["ponet", "softmax"])
def test_published_classifier(kind: str) -> None:
    """Learned positions, two blocks, a norm; the mean over all positions, padding included; two layers on top."""
    fixture = load_fixture(f"sequence/lra_classifier_{kind}")
    state, mask, tokens = fixture.state(), fixture.input("mask").bool(), fixture.input("input_ids_0")
    model = part(state, "model.")
    x = F.embedding(tokens, model["embeddings.word_embeddings.weight"])
    x = x + model["embeddings.position_embeddings.weight"][: x.shape[1]]
    for layer in range(fixture.config["num_layers"]):
        x = block(fixture.config, part(model, f"transformer_{layer}."), x, mask)
    x = norm(x, model, "norm") * mask.unsqueeze(-1)
    fixture.check(x, "hidden")
    head = part(state, "seq_classifer.")
    fixture.check(linear(torch.relu(linear(x.mean(1), head, "mlpblock.0")), head, "mlpblock.2"))
