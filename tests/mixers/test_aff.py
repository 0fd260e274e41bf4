"""AFFNet's token mixer against published numbers."""

from __future__ import annotations

import pytest
import torch

from matmix import load_published
from matmix.mixers.aff import AFF
from tests.fixtures import load_fixture


@pytest.mark.parametrize("name", ["even", "relu", "shrink", "nonsquare"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_published(name: str, dtype: torch.dtype) -> None:
    fixture = load_fixture(f"vision/aff_token_mixer_{name}")
    config = fixture.config
    image = fixture.input(dtype=dtype)
    module = AFF(
        config["hidden_size"],
        tuple(image.shape[2:]),
        groups=config["num_blocks"],
        mlp_ratio=config["hidden_size_factor"],
        act={"swish": "silu"}.get(config["activation"], config["activation"]),
        shrink=config["sparsity_threshold"],
    ).to(dtype)
    load_published(module, fixture.state(dtype), source="microsoft/TokenMixers")
    out = module(image.flatten(2).mT).mT.unflatten(-1, image.shape[2:])
    if dtype == torch.float64:
        fixture.check(out)
    else:
        fixture.check(out, atol=fixture.data["tolerance"]["float32_atol"], rtol=1e-4)


def test_nothing_passes_a_high_threshold_but_the_skip() -> None:
    x = torch.randn(2, 12, 8)
    torch.testing.assert_close(AFF(8, (3, 4), shrink=100.0)(x), x)


def test_frequencies_share_their_weights() -> None:
    """So the same weights serve every grid; a shifted image gives the shifted result."""
    module = AFF(8).double()
    image = torch.randn(1, 6, 5, 8, dtype=torch.float64)
    out = module(image.flatten(1, 2), grid=(6, 5)).view_as(image)
    moved = module(image.roll((2, 3), (1, 2)).flatten(1, 2), grid=(6, 5)).view_as(image)
    shape = (module.w1.shape, module.w2.shape)
    assert shape == ((2, 8, 1, 1), (2, 8, 1, 1))
    # Not exactly equivariant: the activation looks at real and imaginary parts, which a shift turns into each other.
    assert not torch.allclose(moved, out.roll((2, 3), (1, 2)), atol=1e-4)
    flat = AFF(8, act="relu", shrink=0.0).double()
    with torch.no_grad():
        flat.w1.zero_(), flat.b1.fill_(1.0), flat.b2[1].zero_()
    out = flat(image.flatten(1, 2), grid=(6, 5)).view_as(image)
    moved = flat(image.roll((2, 3), (1, 2)).flatten(1, 2), grid=(6, 5)).view_as(image)
    torch.testing.assert_close(moved, out.roll((2, 3), (1, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "groups must be a positive divisor of dim=8, got 3"),
        ({"act": "tanh"}, "act must be one of 'silu', 'relu', 'gelu', got 'tanh'"),
        ({"shrink": -1.0}, "shrink must be a finite number in .*, got -1.0"),
        ({"mlp_ratio": 0.5}, r"mlp_ratio \* 1 of at least 1, got mlp_ratio=0.5"),
    ],
)
def test_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AFF(8, (2, 2), **options)  # type: ignore[arg-type]
