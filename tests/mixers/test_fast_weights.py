"""Retention, gated linear attention and the delta rule: the published recurrences, and the published layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from matmix import create_mixer, load_published
from matmix.matrices import DiagonalSemiseparable, GatedSemiseparable
from matmix.mixers.fast_weights import FastWeights, FastWeightTokens
from tests.fixtures import Fixture, load_fixture

SOURCE = "fla-org/flash-linear-attention"


def published_tokens(fixture: Fixture, heads_first: bool, control: Tensor | None = None) -> FastWeightTokens:
    query, key, values = (fixture.input(name) for name in "qkv")
    if not heads_first:
        query, key, values = (t.transpose(1, 2) for t in (query, key, values))
    return FastWeightTokens(query * query.shape[-1] ** -0.5, key, values, None, control)


def check(mixer: FastWeights, fixture: Fixture, tokens: FastWeightTokens, heads_first: bool) -> None:
    """By matrix, dense and fast, by scan and token by token."""
    matrix = mixer._mixing(tokens, None, None)
    mixed, memory = mixer._remember(tokens, None, None)
    state = torch.zeros_like(memory)
    steps = []
    for i in range(tokens.query.shape[2]):
        parts = [None if t is None else t[:, :, i : i + 1] for t in tokens[:3]]
        control = None if tokens.control is None else tokens.control[:, i : i + 1]
        one = FastWeightTokens(*parts, None, control)
        state = mixer._update(state, one)
        steps.append(state @ one.query.mT)
    torch.testing.assert_close(state, memory)
    for result in (matrix.to_dense() @ tokens.values, matrix.matmul(tokens.values), mixed, torch.cat(steps, -1).mT):
        fixture.check(result if heads_first else result.transpose(1, 2))


def test_retention_is_published() -> None:
    fixture = load_fixture("sequence/fla_retention")
    mixer = create_mixer("retention(heads=3, expand_v=1.0, rotary=False)", 12).double()
    check(mixer, fixture, published_tokens(fixture, True), True)


def test_simple_gla_is_published() -> None:
    fixture = load_fixture("sequence/fla_simple_gla")
    mixer = create_mixer("simple_gla(heads=2, gate_normalizer=1)", 8).double()
    mixer.gate_bias.data.zero_()
    control = -(-fixture.input("g")).expm1().log()  # logsigmoid, inverted
    check(mixer, fixture, published_tokens(fixture, False, control), False)


def test_gla_is_published() -> None:
    fixture = load_fixture("sequence/fla_gla")
    mixer = create_mixer("gla(heads=2, expand_k=1.0, gate_rank=8, gate_normalizer=1)", 8).double()
    mixer.gate_proj.weight.data.copy_(torch.eye(8))
    mixer.gate_proj.bias.data.zero_()
    control = -(-fixture.input("gk").flatten(2)).expm1().log()
    check(mixer, fixture, published_tokens(fixture, False, control), False)


def test_delta_rule_is_published() -> None:
    fixture = load_fixture("sequence/fla_delta_rule")
    mixer = create_mixer("delta_rule(heads=2)", 8).double()
    check(mixer, fixture, published_tokens(fixture, True, fixture.input("beta").logit().mT), True)


# ------------------------------------------------------------------ the layers of flash-linear-attention, in plain code


def fla_state(kind: str, dim: int, heads: int, keys: int, width: int, conv: bool, writes: int = 1) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj.weight": (keys, dim),
        "k_proj.weight": (writes * keys, dim),
        "v_proj.weight": (writes * width, dim),
        "o_proj.weight": (dim, width),
    }
    if kind.startswith("delta"):
        shapes |= {"b_proj.weight": (writes * heads, dim), "o_norm.weight": (width // heads,)}
    else:
        shapes |= {"g_proj.weight": (width, dim), "g_norm_swish_gate.weight": (width // heads,)}
    if kind == "delta_product":
        shapes |= {"g_proj.weight": (width, dim)}
    if kind == "gla":
        shapes |= {"gk_proj.0.weight": (3, dim), "gk_proj.1.weight": (keys, 3), "gk_proj.1.bias": (keys,)}
    if kind == "simple_gla":
        shapes |= {"gk_proj.weight": (heads, dim), "gk_proj.bias": (heads,)}
    if conv:
        shapes |= {
            f"{name}_conv1d.weight": (n, 1, 4) for name, n in (("q", keys), ("k", writes * keys), ("v", writes * width))
        }
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def plain_layer(kind: str, state: dict[str, Tensor], x: Tensor, heads: int, writes: int = 1) -> Tensor:
    """One sample ``(L, D)``, token by token."""
    parts = {}
    for name in "qkv":
        y = x @ state[f"{name}_proj.weight"].T
        if f"{name}_conv1d.weight" in state:
            taps = state[f"{name}_conv1d.weight"][:, 0]
            padded = F.pad(y, (0, 0, 3, 0))
            y = F.silu(sum(padded[k : k + len(x)] * taps[:, k] for k in range(4)))
        parts[name] = y
    query = parts["q"].unflatten(-1, (heads, -1))
    size = query.shape[-1]
    # Of every token's keys (and values, and shares) the first of all heads, the second of all heads, ...
    key, value = (parts[name].unflatten(-1, (writes, heads, -1)) for name in "kv")
    if kind == "retention":
        angle = torch.arange(len(x)).double()[:, None] / 10000 ** (torch.arange(0, size, 2).double() / size)
        turn = torch.polar(torch.ones_like(angle), angle)[:, None]
        query, key = (
            torch.cat(((c := torch.complex(*t.chunk(2, -1)) * turn).real, c.imag), -1) for t in (query, key.squeeze(1))
        )
        key = key.unsqueeze(1)
        decay = (1 - 2.0 ** (-5 - torch.arange(heads).double())).view(1, heads, 1).expand(len(x), -1, size)
    elif kind == "gla":
        raw = x @ state["gk_proj.0.weight"].T @ state["gk_proj.1.weight"].T + state["gk_proj.1.bias"]
        decay = (F.logsigmoid(raw) / 16).exp().unflatten(-1, (heads, size))
    elif kind == "simple_gla":
        raw = x @ state["gk_proj.weight"].T + state["gk_proj.bias"]
        decay = (F.logsigmoid(raw) / 16).exp().unsqueeze(-1).expand(-1, -1, size)
    else:
        query, key = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (query, key))
        share = (x @ state["b_proj.weight"].T).sigmoid().unflatten(-1, (writes, heads))
        share = 2 * share if kind == "delta_product" else share
    memory = torch.zeros(heads, size, value.shape[-1], dtype=torch.float64)
    mixed = []
    for i in range(len(x)):
        if not kind.startswith("delta"):
            memory = decay[i].unsqueeze(-1) * memory
        for j in range(writes):
            new = value[i, j]
            if kind.startswith("delta"):
                new = share[i, j, :, None] * (new - torch.einsum("hew,he->hw", memory, key[i, j]))
            memory = memory + key[i, j].unsqueeze(-1) * new.unsqueeze(-2)
        mixed.append(torch.einsum("hew,he->hw", memory, query[i]) * size**-0.5)
    y = torch.stack(mixed)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)
    if kind == "delta_rule":
        return (y * state["o_norm.weight"]).flatten(1) @ state["o_proj.weight"].T
    if kind == "delta_product":
        y = (y * state["o_norm.weight"]).flatten(1) * F.silu(x @ state["g_proj.weight"].T)
        return y @ state["o_proj.weight"].T
    y = (y * state["g_norm_swish_gate.weight"]).flatten(1) * F.silu(x @ state["g_proj.weight"].T)
    return y @ state["o_proj.weight"].T


LAYERS: list[tuple[str, str, dict[str, Any]]] = [
    ("retention", "retention(heads=2)", {"keys": 12, "width": 24, "conv": False}),
    ("gla", "gla(heads=2, gate_rank=3)", {"keys": 6, "width": 12, "conv": False}),
    ("simple_gla", "simple_gla(heads=2)", {"keys": 12, "width": 12, "conv": True}),
    ("delta_rule", "delta_rule(heads=2)", {"keys": 12, "width": 12, "conv": True}),
    (
        "delta_product",
        "delta_rule(heads=2, expand_v=2, out_gate=True, negative_eigenvalues=True, householders=3)",
        {"keys": 12, "width": 24, "conv": True, "writes": 3},
    ),
]


@pytest.mark.parametrize(("kind", "spec", "sizes"), LAYERS)
def test_layer_is_the_published_one(kind: str, spec: str, sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    state = fla_state(kind, 12, 2, **sizes)
    mixer = load_published(create_mixer(spec, 12).double(), state, SOURCE)
    x = torch.randn(2, 37, 12, dtype=torch.float64)
    expected = torch.stack([plain_layer(kind, state, sample, 2, sizes.get("writes", 1)) for sample in x])
    torch.testing.assert_close(mixer(x), expected)
    with pytest.raises(ValueError, match="missing"):
        load_published(mixer, {k: v for k, v in state.items() if k != "k_proj.weight"}, SOURCE)
    with pytest.raises(ValueError, match="left over"):
        load_published(mixer, state | {"extra.weight": torch.zeros(1)}, SOURCE)


@pytest.mark.parametrize("spec", ["retention(heads=2)", "gla(heads=2)", "simple_gla(heads=2)", "delta_rule(heads=2)"])
def test_holes_are_as_if_cut_out(spec: str) -> None:
    """Where no convolution reaches over it, a masked token in the middle is as if it had never been."""
    torch.manual_seed(1)
    mixer = create_mixer(spec if "rule" not in spec and "simple" not in spec else spec[:-1] + ", d_conv=None)", 8)
    mixer = mixer.double()
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1, 0]]).bool()
    torch.testing.assert_close(mixer(x, mask=mask)[mask], mixer(x[mask].unsqueeze(0))[0])


def test_negative_eigenvalues_turn_what_a_key_reads() -> None:
    """With a share of 2 a key that was written reads the negative of what it held, plus twice the new value."""
    mixer = create_mixer("delta_rule(heads=1, negative_eigenvalues=True)", 2).double()
    key = torch.tensor([[[[1.0, 0.0]] * 2]], dtype=torch.float64)
    value = torch.tensor([[[[3.0, 1.0], [5.0, 7.0]]]], dtype=torch.float64)
    control = torch.full((1, 2, 1), 40.0, dtype=torch.float64)  # sigmoid 1, so b = 2
    mixed = mixer._mixing(FastWeightTokens(key, key, value, None, control), None, None).matmul(value)
    torch.testing.assert_close(mixed[0, 0], torch.stack((2 * value[0, 0, 0], 2 * value[0, 0, 1] - 2 * value[0, 0, 0])))


def test_the_shown_product_is_the_recurrence() -> None:
    """Row i holds, for every write, what ``q_i^T A_n A_{n-1} ... `` leaves of it: written out by its reflections."""
    torch.manual_seed(3)
    mixer = create_mixer("delta_rule(heads=2, d_conv=None, householders=2, negative_eigenvalues=True)", 8).double()
    x, length, seen = torch.randn(1, 5, 8, dtype=torch.float64), 5, {}
    split = mixer._split
    mixer._split = lambda *parts: seen.setdefault("tokens", split(*parts))
    matrix = mixer.matrix(x)
    tokens, strength = seen["tokens"], mixer._strength(seen["tokens"])
    assert [type(factor).__name__ for factor in matrix.factors] == [
        "ColumnCat", "Permutation", "UnitLowerInverse", "Diagonal", "Permutation",
    ]  # fmt: skip
    expected = torch.zeros(1, 2, length, 2 * length, dtype=torch.float64)
    for write in range(2 * length):
        key, share = tokens.key[:, :, write], strength[:, :, write]
        left = share.unsqueeze(-1) * key
        for later in range(write + 1, 2 * length + 1):
            if later % 2 == 0:  # a token's second write is done: its query reads
                query = tokens.query[:, :, later // 2 - 1]
                expected[:, :, later // 2 - 1, (write % 2) * length + write // 2] = (query * left).sum(-1)
            if later < 2 * length:
                key, share = tokens.key[:, :, later], strength[:, :, later]
                left = left - (share * (key * left).sum(-1)).unsqueeze(-1) * key
    torch.testing.assert_close(matrix.to_dense(), expected)


@pytest.mark.parametrize("chunk", [1, 2, 4, 16, 64])
def test_gated_chunks_do_not_matter(chunk: int) -> None:
    torch.manual_seed(2)
    query, key, raw = torch.randn(3, 2, 3, 70, 5, dtype=torch.float64)
    logs = F.logsigmoid(40 * raw)  # from no decay at all to e^-100 a token
    logs[:, :, 11, 2] = -torch.inf
    values = torch.randn(2, 3, 70, 4, dtype=torch.float64)
    gated = GatedSemiseparable(query, key, logs, chunk)
    dense = gated.to_dense()
    torch.testing.assert_close(gated.matmul(values), dense @ values)
    torch.testing.assert_close(gated.rmatmul(values), dense.mT @ values)
    torch.testing.assert_close(DiagonalSemiseparable(query, key, logs.clamp(min=-800)).matmul(values), dense @ values)


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"expand_k \* dim must be a multiple of heads=4, got 0.5 \* 6 = 3"):
        create_mixer("gla", 6)
    with pytest.raises(ValueError, match="rotary needs an even width"):
        create_mixer("retention(heads=4, expand_v=1.0)", 12)
    with pytest.raises(ValueError, match="heads must be a whole number"):
        create_mixer("delta_rule(heads=0)", 8)
    with pytest.raises(ValueError, match="householders must be a whole number"):
        create_mixer("delta_rule(householders=0)", 8)
