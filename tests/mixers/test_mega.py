"""Mega's moving averages and its gated attention, against the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from matmix import create_mixer, load_published
from matmix.mixers.ema import EMA
from matmix.mixers.mega import Mega
from tests.fixtures import Fixture, load_fixture

SOURCE = "facebookresearch/mega"


def test_averages_are_published() -> None:
    fixture = load_fixture("sequence/mega_ema_causal")
    mixer = load_published(create_mixer("ema(d_state=4, causal=True)", 6).double(), fixture.state(), SOURCE)
    assert isinstance(mixer, EMA)
    x = fixture.input().transpose(0, 1)
    fixture.check(mixer(x).transpose(0, 1))
    fixture.check(mixer._one_way(*mixer._modes(), 13).taps()[0], "kernel")
    state, outputs = mixer.init_state(2), []
    for token in x.unbind(1):
        out, state = mixer.step(token, state)
        outputs.append(out)
    fixture.check(torch.stack(outputs))


def published(fixture: Fixture) -> Mega:
    config = fixture.config
    chunk = None if config["chunk_size"] < 0 else config["chunk_size"]
    spec = (
        f"mega(qk_dim={config['zdim']}, hidden={config['hdim']}, d_state={config['ndim']}, block={chunk}, "
        f"act={config['attention_activation']!r}, max_len={config['max_positions']})"
    )
    mixer = load_published(create_mixer(spec, config["embed_dim"]).double(), fixture.state(), SOURCE)
    assert isinstance(mixer, Mega)
    return mixer


@pytest.mark.parametrize("case", ["softmax", "softmax_chunk4"])
def test_gated_attention_is_published(case: str) -> None:
    fixture = load_fixture(f"sequence/mega_attention_{case}")
    mixer, x = published(fixture), fixture.input().transpose(0, 1)
    # The published code takes the softmax in float32 whatever its inputs: 2e-9 of the outputs here.
    fixture.check(mixer(x).transpose(0, 1), atol=4e-9)
    matrix, values, rest = mixer.project(x, mixer._context(x, None, None))
    rounded = matrix.to_dense().log().masked_fill(matrix.to_dense() == 0, -torch.inf).softmax(-1, dtype=torch.float32)
    fixture.check(mixer.merge(rounded.double() @ values, rest).transpose(0, 1))


def test_laplace_attention_is_published() -> None:
    fixture = load_fixture("sequence/mega_attention_laplace_mask")
    mask = fixture.input("keep_mask").bool()
    mixed = published(fixture)(fixture.input("x").transpose(0, 1), mask=mask)
    # The published code has outputs at masked tokens too, which say nothing.
    entry = fixture.expected()
    expected = torch.from_numpy(np.array(entry["values"])).reshape(entry["shape"]).transpose(0, 1)
    torch.testing.assert_close(mixed[mask], expected[mask], rtol=1e-8, atol=1e-9)


def turned(vector: Tensor, position: int) -> Tensor:
    """The rotary embedding of one vector, channel n with channel n + half."""
    half = len(vector) // 2
    angle = position * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    first, second = vector[:half], vector[half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()])


def plain(mixer: Mega, x: Tensor) -> Tensor:
    """Causal attention of one sequence, row by row."""
    normed = mixer.norm(x)
    moved = mixer.move(normed[None])[0]
    gate, shared, reset, straight = mixer.mx_proj(moved).split(mixer.sizes, -1)
    shared = torch.nn.functional.silu(shared)
    query, key = (shared * g + b for g, b in zip(mixer.gamma, mixer.beta, strict=True))
    value = torch.nn.functional.silu(mixer.v_proj(normed))
    reach, rows = len(mixer.rel_pos_bias) // 2, []
    for i in range(len(x)):
        if mixer.rel_pos_bias.dim() == 2:
            bias = torch.stack(
                [turned(mixer.rel_pos_bias[0], i) @ turned(mixer.rel_pos_bias[1], j) for j in range(i + 1)]
            )
        else:
            bias = torch.stack([mixer.rel_pos_bias[reach + max(j - i, -reach)] for j in range(i + 1)])
        score = key[: i + 1] @ query[i] / (i + 1) + bias
        if mixer.act == "relu2":
            weight = score.relu().square()
        elif mixer.act == "laplace":
            weight = 0.5 * (1 + torch.erf((score - 0.5**0.5) / (0.25 / torch.pi) ** 0.5 / 2**0.5))
        else:
            weight = (key[: i + 1] @ query[i] * len(query[i]) ** -0.5 + bias).softmax(0)
        rows.append(weight @ value[: i + 1])
    hidden = torch.nn.functional.silu(straight + mixer.h_proj(torch.stack(rows) * torch.nn.functional.silu(reset)))
    return x + gate.sigmoid() * (hidden - x)


@pytest.mark.parametrize("bias", ["simple", "rotary"])
@pytest.mark.parametrize("activation", ["softmax", "laplace", "relu2"])
def test_causal_attention_is_its_definition_beyond_the_longest_distance(activation: str, bias: str) -> None:
    torch.manual_seed(0)
    spec = f"mega(qk_dim=4, d_state=2, causal=True, act={activation!r}, rel_pos_bias={bias!r}, max_len=5)"
    mixer = create_mixer(spec, 6).double()
    assert isinstance(mixer, Mega)
    torch.nn.init.normal_(mixer.gamma)
    torch.nn.init.normal_(mixer.rel_pos_bias)
    x = torch.randn(11, 6, dtype=torch.float64)
    torch.testing.assert_close(mixer(x[None])[0], plain(mixer, x), rtol=1e-5, atol=1e-6)  # mu, sigma: six digits


def test_rotary_weights_load() -> None:
    torch.manual_seed(0)
    mixer = create_mixer("mega(qk_dim=4, d_state=2, rel_pos_bias='rotary')", 6)
    state = {name.replace("norm.", "norm.norm."): value for name, value in mixer.state_dict().items()}
    del state["rel_pos_bias"]
    state |= {f"rel_pos_bias.{name}": torch.randn(1, 4) for name in ("alpha", "beta")}
    load_published(mixer, state | {"rel_pos_bias._float_tensor": torch.zeros(1)}, SOURCE)
    assert isinstance(mixer, Mega)
    torch.testing.assert_close(mixer.rel_pos_bias[1].detach(), state["rel_pos_bias.beta"][0])


def test_chunks_do_not_meet_but_in_the_averages() -> None:
    torch.manual_seed(1)
    mixer = create_mixer("mega(qk_dim=4, d_state=2, block=4)", 6).double()
    dense = mixer.matrix(torch.randn(2, 10, 6, dtype=torch.float64)).to_dense()  # 10: no multiple of the chunk
    place = torch.arange(10) // 4
    assert torch.equal(dense != 0, (place[:, None] == place).expand_as(dense))
    torch.testing.assert_close(dense.sum(-1), torch.ones(2, 1, 10, dtype=torch.float64))


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="act must be one of 'softmax', 'laplace', 'relu2', got 'relu'"):
        create_mixer("mega(act='relu')", 8)
    with pytest.raises(ValueError, match="rel_pos_bias='rotary' needs an even qk_dim, got 3"):
        create_mixer("mega(rel_pos_bias='rotary', qk_dim=3)", 8)
    with pytest.raises(ValueError, match=r"d_state must be a whole number"):
        create_mixer("ema(d_state=0)", 8)
    with pytest.raises(NotImplementedError, match="not recurrent"):
        create_mixer("mega(causal=True, block=4)", 8).init_state(1)


def test_without_norm_and_residual_it_is_the_branch_of_a_post_norm_block() -> None:
    whole = create_mixer("mega(qk_dim=4, d_state=2, max_len=8)", 6).double()
    bare = create_mixer("mega(qk_dim=4, d_state=2, max_len=8, residual=False)", 6).double()
    bare.load_state_dict({name: value for name, value in whole.state_dict().items() if not name.startswith("norm.")})
    whole.norm = torch.nn.Identity()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    torch.testing.assert_close(x + bare(x), whole(x))
