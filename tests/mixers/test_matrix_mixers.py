"""Hydra's framework: every structure, class by class and in its block, against published numbers and the laws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from matmix import create_mixer, load_published
from matmix.matrices import Matrix
from matmix.mixers.base import Context, merge_heads, split_heads
from matmix.mixers.matrix_block import Factors, Form, Signals, Structure
from matmix.mixers.matrix_mixer import STRUCTURES, Free, MatrixMixer
from matmix.testing import check_mixer
from tests.fixtures import Fixture, load_fixture

BLOCKS = [
    "attention_dd_L24",
    "attention_di_L4",
    "cauchy_dd_L24",
    "cauchy_di_L24",
    "dense_di_L24",
    "low_rank_dd_L24",
    "low_rank_di_L24",
    "quasiseparable_dd_L24",
    "quasiseparable_di_L24",
    "toeplitz_dd_L24",
    "toeplitz_di_L24",
    "vandermonde_dd_L15_max12",
    "vandermonde_dd_L24",
    "vandermonde_dft_L24",
]
CLASSES = [
    "attention_dd_L8_h2",
    "attention_di_L4_h4",
    "cauchy_dd_L8_h2",
    "cauchy_di_L31_h4",
    "cauchy_di_L8_h2",
    "dense_di_L33_h4",
    "dense_di_L8_h2",
    "low_rank_dd_L33_h4",
    "low_rank_dd_L8_h2",
    "low_rank_di_L8_h2",
    "quasiseparable_dd_L15_h4",
    "quasiseparable_dd_L8_h2",
    "toeplitz_dd_L33_h4",
    "toeplitz_dd_L7_h2",
    "toeplitz_di_L32_h4",
    "vandermonde_dd_L33_h4",
    "vandermonde_dd_L8_h2",
    "vandermonde_dft_L32_h4",
    "vandermonde_dft_L8_h2",
    "vandermonde_di_L8_h2",
]


def named(name: str) -> str:
    """The structure that a case is about; there the Fourier transform goes by another name."""
    return "dft" if "_dft_" in name else name.split("_d")[0]


@pytest.mark.parametrize("name", BLOCKS)
def test_published_block(name: str) -> None:
    fixture = load_fixture(f"sequence/hydra_block_{name}")
    config, x = fixture.config, fixture.input("u")
    structure = STRUCTURES[named(name)]
    options: dict[str, Any] = {"qk_dim": config["qk_dim"]} if structure.needs_qk else {}
    if config["is_data_dependent"] and structure.scaled:
        options["max_len"] = config["max_seq_len"]
    mixer = MatrixMixer(
        config["d_model"],
        (x.shape[1],),
        structure=named(name),  # type: ignore[arg-type]
        data_dependent=config["is_data_dependent"],
        published=True,
        head_dim=config["headdim"],
        **options,
    ).double()
    assert sum(p.numel() for p in mixer.parameters()) == fixture.data["num_params"]
    state = fixture.state()
    if structure.name == "dft":
        state["matrix_mixer.dft_matrix"] = torch.zeros(24, 24)  # stored by the published code; ours needs none
    load_published(mixer, state, source="goombalab/hydra")
    fixture.check(mixer(x))


def published_class(name: str) -> tuple[Fixture, Matrix, Tensor, bool]:
    """A class alone: its case, its matrix, the values, and whether the block adds them."""
    fixture = load_fixture(f"sequence/hydra_class_{name}")
    config, kind = fixture.config, STRUCTURES[named(name)]
    inner, length = config["expand"] * config["d_model"], config["max_seq_len"]
    heads = inner // config["headdim"]
    form = Form(config["is_data_dependent"], published=True)
    structure: Structure = kind(heads, config["headdim"], config["qk_dim"], (length,), form).double()
    load_published(structure, fixture.state(), source="goombalab/hydra")
    inputs = {key: fixture.input(key) for key in fixture.data["inputs"]}
    values, streams, raw = (
        torch.cat([*(inputs[k] for k in keys if k in inputs), torch.zeros(2, length, 0)], -1)
        for keys in (("v", "x", "hidden_states"), ("forward_conv", "reverse_conv", "q", "k", "BC"), ("dt",))
    )
    values = split_heads(values, heads)
    # The block adds the bias to the steps; the class alone gets them with it.
    if "dt" in inputs:
        structure.get_parameter("dt_bias").data.zero_()
    matrix = structure(Signals(values, streams.double(), raw.double(), float(length), Context((length,), None)))
    return fixture, matrix, values, structure.residual


@pytest.mark.parametrize("name", CLASSES)
def test_published_class(name: str) -> None:
    fixture, matrix, values, residual = published_class(name)
    fixture.check(merge_heads(matrix.matmul(values) + (values if residual else 0)))
    if "outputs" in fixture.data:
        eye = torch.eye(values.shape[2], dtype=torch.float64) if residual else 0
        dense = (matrix.to_dense() + eye)[0]
        fixture.check(dense.expand(values.shape[1], -1, -1), key="matrix_batch0")


def learned(name: str, length: int = 6, published: bool = False) -> Structure:
    return STRUCTURES[name](2, 4, 3, (length,), Form(False, published=published)).double()


def entries(structure: Structure, length: int) -> Tensor:
    values = torch.zeros(1, 2, length, 4, dtype=torch.float64)
    empty = values.new_zeros(1, length, 0)
    matrix = structure(Signals(values, empty, empty, float(length), Context((length,), None)))
    return matrix.to_dense().detach()


def test_learned_vandermonde_mixes() -> None:
    """The default is the sum of cosines itself; the published one the diagonal of its row sums."""
    ours, theirs = learned("vandermonde"), learned("vandermonde", published=True)
    theirs.load_state_dict(ours.state_dict())
    dense, diagonal = entries(ours, 6), entries(theirs, 6)
    q, k = (ours.get_parameter(f"{n}_matrix").detach() for n in "qk")  # (L, H, qk)
    for i in range(6):
        for j in range(6):
            terms = (2 * math.pi * q[i] * j).cos() + (2 * math.pi * k[j] * i).cos()
            torch.testing.assert_close(dense[0, :, i, j], terms.sum(-1) / math.sqrt(2 * 6 * 3))
    torch.testing.assert_close(diagonal, torch.diag_embed(dense.sum(-1)))


def test_learned_attention_has_a_row_a_token() -> None:
    ours = learned("attention", 5)
    assert isinstance(ours, Factors)
    scores = torch.einsum("lhe,mhe->hlm", ours.q_matrix, ours.k_matrix) / math.sqrt(3)
    torch.testing.assert_close(entries(ours, 5)[0], scores.softmax(-1).detach())
    with pytest.raises(ValueError, match=r"as many tokens as heads \(2\), got the grid \(5,\)"):
        learned("attention", 5, published=True)
    with pytest.raises(ValueError, match="as many tokens as heads"):
        learned("attention", 2, published=True).resize_((2,), (3,))


@pytest.mark.parametrize("name", ["dense", "low_rank", "cauchy"])
def test_row_sums_survive_resizing(name: str) -> None:
    """Equal tokens: every row of M sums to what it did, whatever the length."""
    structure = learned(name, 4)
    with torch.no_grad():
        for parameter in structure.parameters():
            parameter.copy_(parameter.flatten()[0].expand_as(parameter))
    before = entries(structure, 4).sum(-1)
    structure.resize_((4,), (10,))
    torch.testing.assert_close(entries(structure, 10).sum(-1), before[..., :1].expand(1, 2, 10))


def test_learned_numbers_start_as_large_as_those_from_tokens() -> None:
    torch.manual_seed(0)
    for name, size in (("dense", 1.0), ("low_rank", 1.0), ("toeplitz", 0.5)):
        rows = entries(learned(name, 64), 64).square().sum(-1).sqrt().mean()
        assert 0.7 * size < float(rows) < 1.3 * size, name
        assert float(entries(learned(name, 64, published=True), 64).square().sum(-1).sqrt().mean()) < 0.1, name


FORMS = [(name, way) for name, structure in STRUCTURES.items() for way in structure.ways]
# Registered mixers, which all laws run on as it is; see test_thin_names_are_the_block.
REGISTERED = [(name, STRUCTURES[name].ways[0]) for name in ("toeplitz", "vandermonde", "cauchy", "low_rank")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way"), [f for f in FORMS if f not in [*REGISTERED, ("quasiseparable", True)]])
def test_laws_of_the_forms(name: str, way: bool) -> None:
    laws = ["product", "data_dependence", "length", "mask_content", "mask_trim", "gradients", "small", "precision"]

    def build(dim: int, grid: Any) -> MatrixMixer:
        return MatrixMixer(dim, grid, structure=name, data_dependent=way, head_dim=4, d_conv=3)  # type: ignore[arg-type]

    check_mixer(build, laws=[*laws, "extremes", "compiles"])


def test_thin_names_are_the_block() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 8)
    for name in ("toeplitz", "vandermonde", "cauchy", "low_rank"):
        thin = create_mixer(f"{name}(head_dim=4, data_dependent=False)", 8, (7,))
        whole = create_mixer(f"matrix_mixer(structure={name!r}, head_dim=4, data_dependent=False)", 8, (7,))
        whole.load_state_dict(thin.state_dict())
        torch.testing.assert_close(whole(x), thin(x))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cauchy(qk_dim=0)", "qk_dim must be a whole number"),
        ("cauchy(max_len=0)", "max_len must be a whole number"),
        ("cauchy(d_conv=4)", "d_conv must be odd"),
        ("cauchy(qkdim=4)", "cauchy has no option 'qkdim'; did you mean qk_dim"),
        ("matrix_mixer(structure='dense', data_dependent=True)", "data_dependent must be False for dense, got True"),
        ("matrix_mixer(structure='dense', qk_dim=4)", "qk_dim must be None for dense.*got 4"),
        (
            "matrix_mixer(structure='attention', max_len=4)",
            "max_len must be None but for data-dependent matrices.*got 4",
        ),
        ("matrix_mixer(structure='fourier')", "structure must be one of .*'dense', 'toeplitz'"),
    ],
)
def test_refuses(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mixer(spec, 8, (4,))


def test_a_free_matrix_is_scaled() -> None:
    structure = learned("dense", 4)
    assert isinstance(structure, Free)
    torch.testing.assert_close(entries(structure, 4)[0], structure.M.detach() / 2)
