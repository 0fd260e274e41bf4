"""The controls: JustDense as published, and what the others leave out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix import create_mixer, load_published
from tests.fixtures import Fixture, load_fixture


def positions(length: int, dim: int) -> Tensor:
    """TSLib's sinusoidal table, computed in float32."""
    place = torch.arange(length).float().unsqueeze(1)
    rate = (torch.arange(0, dim, 2).float() * -(math.log(10000.0) / dim)).exp()
    table = torch.zeros(length, dim)
    table[:, 0::2], table[:, 1::2] = (place * rate).sin(), (place * rate).cos()
    return table.double()


def embedded(state: dict[str, Tensor], name: str, series: Tensor) -> Tensor:
    """TSLib's embedding without time marks: a circular convolution over three steps, and positions."""
    kernel = state[f"{name}.value_embedding.tokenConv.weight"]
    tokens = F.conv1d(F.pad(series.mT, (1, 1), mode="circular"), kernel).mT
    return tokens + positions(*tokens.shape[1:])


def of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def mixer_of(fixture: Fixture, prefix: str, **options: object) -> nn.Module:
    state = of(fixture.state(), prefix)
    words = ", ".join(f"{name}={value!r}" for name, value in options.items())
    mixer = create_mixer(f"justdense({words})", fixture.config["d_model"], fixture.data["output"]["shape"][1]).double()
    return load_published(mixer, state, source="Thrillcrazyer/JustDense")


def test_justdense_is_the_published_layer() -> None:
    fixture = load_fixture("time_series/dense_mixer")
    mixer = mixer_of(fixture, "", heads=4)
    fixture.check(mixer(fixture.input()))


def test_justdense_in_place_of_attention() -> None:
    """The published transformer for anomaly detection, its encoder around our mixers."""
    fixture = load_fixture("time_series/jd_transformer_anomaly_detection")
    state = fixture.state()
    x = embedded(state, "enc_embedding", fixture.input("x_enc"))
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])
    for at in range(2):
        layer = f"encoder.attn_layers.{at}"
        x = norm(x + mixer_of(fixture, f"{layer}.attention.", heads=4)(x), f"{layer}.norm1")
        first, second = ((state[f"{layer}.conv{n}.weight"].squeeze(2), state[f"{layer}.conv{n}.bias"]) for n in (1, 2))
        x = norm(x + F.linear(F.gelu(F.linear(x, *first)), *second), f"{layer}.norm2")
    x = norm(x, "encoder.norm")
    fixture.check(F.linear(x, state["projection.weight"], state["projection.bias"]), atol=1e-7, rtol=1e-6)


def test_justdense_in_place_of_mamba() -> None:
    fixture = load_fixture("time_series/jd_mamba_anomaly_detection")
    state = fixture.state()
    mixer = mixer_of(fixture, "mamba.", wrapper="mamba", heads=8, d_conv=1)
    out = mixer(embedded(state, "embedding", fixture.input("x_enc")))
    fixture.check(F.linear(out, state["projection.weight"], state["projection.bias"]), atol=1e-7, rtol=1e-6)


def test_controls_are_what_they_say() -> None:
    x = torch.randn(3, 5, 6)
    assert not create_mixer("zero", 6)(x).any()
    torch.testing.assert_close(create_mixer("uniform", 6)(x), x.mean(1, keepdim=True).expand_as(x))
    running = x.cumsum(1) / torch.arange(1, 6).view(1, 5, 1)
    torch.testing.assert_close(create_mixer("uniform(causal=True)", 6)(x), running)
    mixer = create_mixer("mean_matrix(heads=3)", 6, 5)
    torch.testing.assert_close(mixer(x), x.mean(1, keepdim=True).expand_as(x))
    assert not list(mixer.parameters())


def test_elementwise_has_the_parameters_of_attention() -> None:
    counts = {
        name: sum(p.numel() for p in create_mixer(name, 64).parameters()) for name in ("elementwise", "attention")
    }
    assert counts["elementwise"] == counts["attention"]


@pytest.mark.parametrize("spec", ["justdense(heads=5)", "justdense(wrapper='rnn')", "mean_matrix(heads=4)"])
def test_bad_options_are_named(spec: str) -> None:
    with pytest.raises(ValueError, match=r"heads must be a positive divisor|wrapper must be"):
        create_mixer(spec, 6, 5)
