"""Hydra's framework: low rank, Cauchy and Vandermonde, class by class and in their block."""

import pytest
import torch

from matmix import create_mixer, load_published
from tests.fixtures import load_fixture


@pytest.mark.parametrize(
    ("name", "max_len"),
    [("low_rank_dd_L24", 24), ("cauchy_dd_L24", 24), ("vandermonde_dd_L24", 24), ("vandermonde_dd_L15_max12", 12)],
)
def test_published_block(name: str, max_len: int) -> None:
    fixture = load_fixture(f"sequence/hydra_block_{name}")
    spec = f"{fixture.config['matrix_mixer_type']}(headdim=16, qk_dim=8, max_len={max_len})"
    mixer = create_mixer(spec, 32).double()
    load_published(mixer, fixture.state(), source="goombalab/hydra")
    fixture.check(mixer(fixture.input("u")))


@pytest.mark.parametrize(
    ("name", "length", "heads"),
    [
        ("low_rank_dd_L8_h2", 8, 2),
        ("low_rank_dd_L33_h4", 33, 4),
        ("cauchy_dd_L8_h2", 8, 2),
        ("vandermonde_dd_L8_h2", 8, 2),
        ("vandermonde_dd_L33_h4", 33, 4),
    ],
)
def test_published_class(name: str, length: int, heads: int) -> None:
    """The class alone: its matrix, scaled, plus the identity."""
    fixture = load_fixture(f"sequence/hydra_class_{name}")
    query, key, values = (fixture.input(n).unflatten(-1, (heads, -1)).transpose(1, 2) for n in ("q", "k", "v"))
    kind, width = fixture.config["matrix_mixer_type"], query.shape[3]
    mixer = create_mixer(f"{kind}(headdim=8, qk_dim={width})", 4 * heads).double()
    own = {key: value for key, value in fixture.state().items() if key == "bias"}
    mixer.load_state_dict({**mixer.state_dict(), **own})
    matrix = mixer.mixing(query, key, float(length))
    fixture.check((matrix.matmul(values) + values).transpose(1, 2).flatten(2))
    if "outputs" in fixture.data:
        eye = torch.eye(length, dtype=torch.float64)
        fixture.check((matrix.to_dense() + eye)[0], key="matrix_batch0")


def test_refuses() -> None:
    for option, message in (("qk_dim=0", "qk_dim must be a positive integer"), ("d_conv=4", "d_conv must be odd")):
        with pytest.raises(ValueError, match=message):
            create_mixer(f"cauchy({option})", 8)
    with pytest.raises(ValueError, match="cauchy has no option 'qkdim'; it has: expand, headdim, qk_dim"):
        create_mixer("cauchy(qkdim=4)", 8)
