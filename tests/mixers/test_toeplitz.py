"""Hydra's Toeplitz class and block against published numbers, and the right version against its definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from matmix import create_mixer, load_published
from matmix.matrices import Matrix
from matmix.mixers.base import split_heads
from matmix.mixers.toeplitz import Lags, Toeplitz
from matmix.testing import check_mixer
from tests.fixtures import Fixture, load_fixture


@pytest.mark.parametrize("kind", ["dd", "di"])
def test_published_block(kind: str) -> None:
    fixture = load_fixture(f"sequence/hydra_block_toeplitz_{kind}_L24")
    options = "max_len=24" if kind == "dd" else "data_dependent=False"
    mixer = create_mixer(f"toeplitz(head_dim=16, published=True, {options})", 32, (24,)).double()
    load_published(mixer, fixture.state(), source="goombalab/hydra")
    fixture.check(mixer(fixture.input("u")))


def published_class(fixture: Fixture, *, published: bool = True) -> Matrix:
    """The matrix of the class alone, scaled, without the identity."""
    config = fixture.config
    length, inner = config["max_seq_len"], config["expand"] * config["d_model"]
    dependent = config["is_data_dependent"]
    mixer = Toeplitz(inner, (length,), data_dependent=dependent, published=published, expand=1, head_dim=8).double()
    lags = mixer.matrix_mixer
    assert isinstance(lags, Lags)
    if dependent:
        taps = torch.cat([fixture.input("forward_conv"), fixture.input("reverse_conv")], -1)
        return lags.from_tokens(taps, float(length))
    lags.conv_params.data = fixture.state()["conv_params"]
    return lags.learned(torch.float64)


@pytest.mark.parametrize("name", ["dd_L33_h4", "dd_L7_h2", "di_L32_h4"])
def test_published_class(name: str) -> None:
    fixture = load_fixture(f"sequence/hydra_class_toeplitz_{name}")
    x = fixture.input("x")
    matrix = published_class(fixture)
    values = split_heads(x, matrix.shape[1])
    fixture.check((matrix.matmul(values) + values).transpose(1, 2).flatten(2))
    if "outputs" in fixture.data:
        eye = torch.eye(x.shape[1], dtype=torch.float64)
        fixture.check((matrix.to_dense() + eye)[0], key="matrix_batch0")


def test_the_default_has_lag_0_on_the_diagonal() -> None:
    fixture = load_fixture("sequence/hydra_class_toeplitz_dd_L7_h2")
    dense = published_class(fixture, published=False).to_dense()
    forward, reverse = fixture.input("forward_conv"), fixture.input("reverse_conv")
    for i in range(7):
        for j in range(7):
            tap = forward[:, i - j] if i >= j else reverse[:, j - i]
            torch.testing.assert_close(dense[:, :, i, j], tap * 0.5 / 7**0.5)
    shifted = published_class(fixture).to_dense()
    torch.testing.assert_close(shifted[..., :-1, 1:], dense[..., 1:, 1:])  # the published one, a column late


def entries(mixer: Toeplitz, length: int) -> Tensor:
    return mixer.matrix(torch.zeros(1, length, mixer.dim, dtype=torch.float64)).to_dense()


@pytest.mark.parametrize("causal", [False, True])
def test_resize_keeps_the_entries(causal: bool) -> None:
    mixer = Toeplitz(4, (6,), data_dependent=False, causal=causal, head_dim=4).double()
    before = entries(mixer, 6)
    larger = entries(mixer.resize_((9,)), 9)
    torch.testing.assert_close(larger[..., :6, :6], before)
    assert bool((larger[..., 6:, 0] == 0).all())
    torch.testing.assert_close(entries(mixer.resize_((2, 2)), 4), before[..., :4, :4])


def test_a_causal_prefix_has_the_leading_block() -> None:
    mixer = Toeplitz(8, causal=True, head_dim=4, max_len=16).double()
    assert mixer.traits == replace(Toeplitz.traits, causal=True, aligned=True)
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    whole, prefix = mixer.matrix(x).to_dense(), mixer.matrix(x[:, :7]).to_dense()
    torch.testing.assert_close(whole[..., :7, :7], prefix)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("published=True, causal=True", "published=True reproduces"),
        ("data_dependent=False, max_len=4", "max_len must be None but for data-dependent matrices.*got 4"),
        ("expand=0", "expand must be a finite number in .*, got 0"),
        ("d_conv=4", "odd"),
    ],
)
def test_errors(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mixer(f"toeplitz({options})", 8, (4,))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"data_dependent": False, "causal": True},  # both ways: among the forms of matrix_mixer
        {"causal": True, "max_len": 9},
        {"published": True},
    ],
)
def test_laws_of_the_options(options: dict[str, object]) -> None:
    laws = [
        "product",
        "causal",
        "data_dependence",
        "length",
        "mask_content",
        "mask_trim",
        "aligned",
        "gradients",
    ]
    factory = lambda dim, grid: Toeplitz(dim, grid, head_dim=4, d_conv=3, **options)  # type: ignore[arg-type]
    check_mixer(factory, laws=[*laws, "small", "compiles"])
