"""The encoder around the mixers."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from matmix import fork_seed, load_published
from matmix.mixers import list_mixers, mixer_info
from sequence.encoder import Encoder, Patches
from sequence.layers.block import Block, BlockOptions, TiedDropout
from sequence.layers.pooling import pool
from tests.building import check_building, check_dtypes
from tests.fixtures import load_fixture


def encoder(mixer="attention(head_dim=4)", *, embedding=lambda: nn.Embedding(20, 8), **options) -> Encoder:
    options = {"dim": 8, "depth": 2, "grid": (12,), "head": "class", "outputs": 5, **options}
    return Encoder(embedding, mixer, **options)


def moved(model: nn.Module) -> nn.Module:
    """Off its initial values, which may hide what stands behind them."""
    with fork_seed(0, "moved"), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


TOKENS = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("head", "shape"), [("class", (3, 5)), ("token", (3, 12, 5)), ("forecast", (3, 5))])
def test_heads(head, shape):
    model = encoder(head=head)
    assert model(TOKENS).shape == shape
    with pytest.raises(ValueError, match="head must be"):
        encoder(head="mean")


def test_last_is_the_last_real_token():
    x = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])
    assert torch.equal(pool(x, "last", mask), torch.stack([x[0, 1], x[1, 3]]))
    assert torch.equal(pool(x, "last", None), x[:, -1])
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    assert torch.equal(pool(x, "mean", nothing), torch.zeros(2, 3))


def test_position_makes_order_matter():
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    bag, aware = encoder().eval(), encoder(position="learned").eval()
    torch.testing.assert_close(bag(TOKENS[:, order]), bag(TOKENS))
    assert (aware(TOKENS[:, order]) - aware(TOKENS)).abs().max() > 1e-3


def test_patches_are_row_by_row():
    patches = Patches(3, 8, 2)
    image = torch.randn(2, 3, 4, 6)
    tokens = patches(image)
    assert tokens.shape == (2, 6, 8)
    torch.testing.assert_close(tokens[:, 4], patches(image[:, :, 2:4, 2:4])[:, 0])


def test_hybrids_by_depth():
    model = encoder("identity, attention(head_dim=4)")
    assert [type(block.mixer).__name__ for block in model.blocks] == ["Identity", "Attention"]
    with pytest.raises(ValueError, match="does not divide depth=2"):
        encoder("identity, identity, attention")


def test_no_mlp():
    assert not any("mlp" in name for name in encoder(mlp_ratio=0).state_dict())
    assert encoder(mlp_ratio=3).blocks[0].mlp[0].out_features == 24


def outside(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if ".mixer." not in name}


@pytest.mark.parametrize("name", [name for name in list_mixers() if name != "heads"])
def test_arms_agree_outside_of_the_mixer(name):
    """Bit for bit, though the mixers draw different amounts of random numbers."""
    info = mixer_info(name)
    if 1 not in info.traits.dims:
        pytest.skip("images only")
    options = ", ".join(f"{k}={v!r}" for k, v in info.smallest.items() if k != "dim")
    mine = outside(encoder(f"{name}({options})", position="learned"))
    reference = outside(encoder("identity", position="learned"))
    assert mine.keys() == reference.keys()
    for key, value in reference.items():
        assert torch.equal(value, mine[key]), key


def test_blocks_and_seeds_differ_and_repeat():
    one, again, other = encoder(), encoder(), encoder(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    for part in ("embedding.weight", "head.weight", "blocks.0.mixer.qkv.weight", "blocks.0.mlp.0.weight"):
        assert not torch.equal(one.state_dict()[part], other.state_dict()[part])
    assert not torch.equal(one.blocks[0].mixer.qkv.weight, one.blocks[1].mixer.qkv.weight)
    alone = encoder("identity, attention(head_dim=4)")
    assert torch.equal(alone.blocks[1].mixer.qkv.weight, one.blocks[1].mixer.qkv.weight)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    encoder(position="learned")
    assert torch.equal(torch.rand(3), expected)


def test_is_built_and_saved_in_every_way(tmp_path: Path) -> None:
    def build() -> Encoder:
        return Encoder(
            lambda: nn.Linear(2, 8), "ssd(head_dim=4, d_state=2), attention", dim=8, depth=2, grid=(9,), head="class",
            outputs=3, position="learned",
        )  # fmt: skip

    x = torch.randn(2, 9, 2)
    check_building(build, x, tmp_path)
    check_dtypes(build, x)


# ------------------------------------------------------------------ padding, over all options

HEADS = {
    "mean": {"pool": "mean"}, "max": {"pool": "max", "pool_norm": True}, "first": {"pool": "first"},
    "last": {"pool": "last"}, "cls": {"pool": "cls", "head_hidden": (6,)}, "token": {"head": "token"},
    "pair": {"head": "pair", "pair_features": "product_difference"},
}  # fmt: skip
STYLES = {
    "layer": {"position": "learned"},
    "rms": {"norm": "rms", "position": "sinusoidal", "glu": True, "act": "silu", "conv": 3},
    "batch": {"norm": "batch", "prenorm": False, "conv": 4, "dropout": 0.1, "tied_dropout": True},
    "scale": {"norm": "scale", "mlp_ratio": 0, "position": "learned", "final_norm": False},
}
MIXERS = [
    "attention(head_dim=4, rotary=True)", "hydra(expand=1, head_dim=4, d_state=2)", "ponet(heads=2, segments=3)",
    "linear_attention(head_dim=4)", "s4d, pooling", "ssd(head_dim=4, d_state=2), attention(head_dim=4)",
]  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("head", HEADS)
def test_a_padded_sequence_equals_the_trimmed_one(head, style):
    """Values and gradients, padded on the right and on the left, in every style around several mixers."""
    for mixer in MIXERS:
        model = moved(encoder(mixer, **HEADS[head], **STYLES[style])).double().eval()
        short = torch.stack([TOKENS[:, :7], TOKENS[:, 5:]], 1) if head == "pair" else TOKENS[:, :7]
        expected = model(short)
        expected.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        for left in (False, True):
            sides = (5, 0) if left else (0, 5)
            padded = nn.functional.pad(short, sides, value=19)
            mask = nn.functional.pad(torch.ones_like(short, dtype=torch.bool), sides)
            found = model(padded, mask=mask)
            found = found[:, 5:] if left and head == "token" else found[:, :7] if head == "token" else found
            torch.testing.assert_close(found, expected, msg=lambda text, at=(mixer, left): f"{at}: {text}")
            model.zero_grad()
            found.square().sum().backward()
            for (name, parameter), wanted in zip(model.named_parameters(), gradients, strict=True):
                close = torch.allclose(parameter.grad, wanted, rtol=1e-6, atol=1e-8)
                assert close, f"{mixer}, {'left' if left else 'right'}: gradient of {name}"
                # the row of the padding token, and positions that nothing stands at, get none


@pytest.mark.parametrize("mixer", ["fnet", "dense", "attention(head_dim=4)", "hydra(head_dim=4, d_state=2)"])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_what_stands_at_padding_reaches_nothing(mixer, norm):
    """Of mixers too that join all positions of the padded length, in training mode, where a batch norm measures."""
    model = moved(encoder(mixer, norm=norm, pool="max", conv=4, position="learned", embedding=lambda: nn.Linear(2, 8)))
    x = torch.randn(3, 12, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(12) < torch.tensor([[12], [7], [1]])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for filler in (0.0, 1e30, float("nan")):
        model.load_state_dict(state)
        model.zero_grad()
        out = model(x.masked_fill(~mask.unsqueeze(-1), filler), mask=mask)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in model.parameters()), *model.buffers()])
        results[-1] = [value.detach().clone() for value in results[-1]]
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert all(value.isfinite().all() for value in results[0])


def test_an_empty_sequence_gives_finite_numbers():
    for head, style in itertools.product(HEADS, STYLES):
        model = encoder(**HEADS[head], **STYLES[style])
        x = torch.stack([TOKENS, TOKENS], 1) if head == "pair" else TOKENS
        mask = torch.ones_like(x, dtype=torch.bool)
        mask[0] = False
        out = model(x, mask=mask)
        out[(slice(None), slice(None)) if head == "token" else ()].square().sum().backward()
        assert out.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters()), (head, style)


# ------------------------------------------------------------------ packed, token by token, published


@pytest.mark.parametrize("pool", ["mean", "max", "first", "last"])
def test_packed_rows_are_their_sequences(pool):
    """Outputs and gradients of three sequences in a row, padding behind them, and of each alone."""
    lengths = [4, 1, 5]
    for mixer in ("attention(head_dim=4, rotary=True)", "local_attention(head_dim=4, window=3), attention(head_dim=4)"):
        model = moved(encoder(mixer, pool=pool, position="learned", conv=3)).double().eval()
        segments = torch.tensor([[0] * 4 + [1] + [2] * 7, [5] * 4 + [3] + [7] * 7, [0] * 4 + [1] + [0] * 7])
        mask = (torch.arange(12) < 10).expand(3, 12)
        alone = torch.stack([model(part) for part in TOKENS[:, :10].split(lengths, 1)], 1)
        packed = model(TOKENS, mask=mask, segments=segments)
        torch.testing.assert_close(packed, alone)
        weight = torch.randn(alone.shape, generator=torch.Generator().manual_seed(0))
        gradients = [torch.autograd.grad((out * weight).sum(), list(model.parameters())) for out in (packed, alone)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_rows_may_be_longer_than_positions_if_no_sequence_is():
    model = encoder(position="learned").eval()
    row = torch.cat((TOKENS[0], TOKENS[1])).unsqueeze(0)
    segments = (torch.arange(24) >= 12).long().unsqueeze(0)
    torch.testing.assert_close(model(row, segments=segments)[0], model(TOKENS[:2]))
    with pytest.raises(ValueError, match="13 tokens, and learned positions reach 12"):
        model(row, segments=(torch.arange(24) >= 13).long().unsqueeze(0))


def test_packed_rows_that_cannot_be_are_refused():
    segments = torch.zeros(3, 12, dtype=torch.int64)
    for model, message in (
        (encoder("hydra(head_dim=4, d_state=2)"), "takes no segments"),
        (encoder(pool="padded_mean"), "padded length"),
        (encoder(pool="cls"), "one token in front"),
        (encoder(head="pair"), "pairs are not packed"),
    ):
        x = torch.stack((TOKENS, TOKENS), 1) if model.read == "pair" else TOKENS
        with pytest.raises(ValueError, match=message):
            model(x, segments=segments)


STEPPED = ["attention(head_dim=4, causal=True, rotary=True)", "ssd(head_dim=4, d_state=2), delta_rule(heads=2)", "s4d"]


@pytest.mark.parametrize("mixer", STEPPED)
def test_steps_equal_the_forward(mixer):
    """A prompt in two parts, padded on the left and right, then token by token."""
    for style in STYLES.values():
        options = {k: v for k, v in style.items() if k not in ("dropout", "tied_dropout")}
        model = moved(Encoder(
            lambda: nn.Embedding(20, 8), mixer, dim=8, depth=2, grid=(12,), head="language", outputs=20,
            tied=style is STYLES["rms"], **options,
        )).double().eval()  # fmt: skip
        expected = model(TOKENS)
        mask = torch.tensor([False, True, True, True, False]).expand(3, 5)
        first, state = model.prefill(nn.functional.pad(TOKENS[:, :3], (1, 1), value=19), mask=mask)
        second, state = model.prefill(TOKENS[:, 3:7], state=state)
        outputs = [first[:, 1:4], second]
        for token in TOKENS[:, 7:].unbind(1):
            out, state = model.step(token, state)
            outputs.append(out.unsqueeze(1))
        torch.testing.assert_close(torch.cat(outputs, 1), expected)
        assert state.seen.tolist() == [12] * 3


def test_what_would_be_quietly_wrong_is_refused():
    tokens = {"head": "token"}
    for options, message in (
        ({"head": "language"}, "needs causal mixers .* \\['Attention', 'Attention'\\]"),
        ({"mixer": "ssd(head_dim=4, d_state=2), value_only", "pool": "cls"}, "shows no other"),
        ({"pool": "cls", "grid": (3, 4)}, "puts a token in front of a sequence"),
        ({"pool": "median"}, "pool must be one of 'mean', 'padded_mean'"),
        ({"position": "rotary"}, "position must be one of 'none', 'learned', 'sinusoidal'"),
        ({"norm": "group"}, "norm must be one of 'layer', 'rms', 'batch', 'scale', got 'group'"),
        ({"act": "tanh"}, "act must be one of 'gelu', 'gelu_tanh', 'relu', 'silu'"),
        ({"pair_features": "sum"}, "pair_features must be one of 'concat'"),
        ({"mlp_ratio": -1}, r"mlp_ratio must be a finite number in \[0, "),
        ({"conv": -1}, "conv must be a whole number"),
        ({"tied": True}, "tied=True is only for head='token' or 'language'"),
        ({"tied": True, **tokens}, "must be the 20 tokens embedded, got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder(**options)
    with pytest.raises(ValueError, match="token ids must be 0 to 19, got 1 to 20"):
        encoder()(torch.tensor([[1, 20]]))
    with pytest.raises(ValueError, match="14 tokens, and learned positions reach 12"):
        encoder(position="learned")(TOKENS[:, :1].expand(3, 14))
    with pytest.raises(ValueError, match=r"need recurrent mixers .* got Attention, Attention and head='token'"):
        encoder(**tokens).prefill(TOKENS)
    assert encoder("zero", pool="cls")(TOKENS).shape == (3, 5)  # a control that mixes nothing is no mistake


def test_convolutions_are_causal_where_the_mixer_is():
    """Four taps see three tokens back in front of a causal mixer, two back and one ahead in front of another."""
    for mixer, reach in (("value_only", (3, 0)), ("sep_conv(kernel=1)", (2, 1))):
        model = moved(encoder(mixer, head="token", conv=4, depth=1, mlp_ratio=0)).double()
        x = model.embedding(TOKENS[:1]).detach().requires_grad_()
        seen = torch.autograd.grad(model.blocks[0](x)[0, 5].sum(), x)[0][0].abs().sum(-1).nonzero().flatten().tolist()
        assert seen == list(range(5 - reach[0], 5 + reach[1] + 1)), (mixer, seen)


def test_tied_dropout_draws_once_for_all_tokens():
    dropout = TiedDropout(0.5)
    out = dropout(torch.ones(4, 7, 16))
    assert torch.equal(out, out[:, :1].expand_as(out)) and set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropout.eval()(out), out)


@pytest.mark.parametrize("kind", ["fnet", "ponet", "softmax"])
def test_published_block(kind):
    """At real tokens: the published code goes on computing at padding, which nothing reads afterwards."""
    fixture = load_fixture(f"sequence/lra_block_{kind}")
    block = Block(published_mixer(fixture.config), 16, (16,), BlockOptions(mlp_ratio=2.0)).double().eval()
    load_published(block, fixture.state(), "lxchtan/PoNet")
    x, mask = fixture.input("X"), fixture.input("mask").bool()
    if kind == "fnet":  # it reads the padding as well
        return fixture.check(block(x))
    expected = torch.tensor(fixture.expected()["values"], dtype=torch.float64).view(x.shape)
    torch.testing.assert_close(block(x, mask)[mask], expected[mask], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", ["ponet", "softmax"])
def test_published_classifier(kind):
    """Learned positions, two blocks, a norm; the mean over all positions, padding included; two layers on top."""
    fixture = load_fixture(f"sequence/lra_classifier_{kind}")
    config = fixture.config
    model = Encoder(
        lambda: nn.Embedding(config["vocab_size"], 16), published_mixer(config), dim=16, depth=2, grid=(16,),
        head="class", outputs=10, pool="padded_mean", head_hidden=(32,), head_act="relu", position="learned",
    ).double().eval()  # fmt: skip
    load_published(model, fixture.state(), "lxchtan/PoNet")
    mask, hidden = fixture.input("mask").bool(), []
    model.norm.register_forward_hook(lambda module, args, out: hidden.append(out * mask.unsqueeze(-1)))
    fixture.check(model(fixture.input("input_ids_0"), mask=mask))
    fixture.check(hidden[0], "hidden")
    extra = {"model.transformer_0.mha.extra.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"left over: model.transformer_0.mha.extra.weight"):
        load_published(model, fixture.state() | extra, "lxchtan/PoNet")


def published_mixer(config):
    heads, width, segments = config["num_head"], config["head_dim"], config["segment_num"]
    return {
        "fnet": "fnet",
        "softmax": f"attention(head_dim={width}, qkv_bias=True, proj_bias=True)",
        "ponet": f"ponet(heads={heads}, segments={segments}, padded_segments=True)",
    }[config["attn_type"]]
