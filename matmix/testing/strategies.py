"""Sizes for the laws, drawn by hypothesis: from one token, odd, prime, powers of two, non-square grids."""

from __future__ import annotations

from hypothesis import strategies as st

from matmix.matrices.base import Matrix
from matmix.mixers.base import Grid, Traits
from matmix.mixers.registry import MixerInfo
from matmix.testing.cases import MatrixCase, MixerCase
from matmix.testing.check import factory_of

LENGTHS = (1, 2, 3, 5, 7, 8, 9, 12, 13, 16, 17, 23, 31, 32, 33, 40)
IMAGES = ((1, 1), (1, 5), (3, 5), (5, 2), (4, 4), (7, 3), (2, 9), (6, 1), (5, 7))


def grids(dims: frozenset[int] = frozenset({1, 2})) -> st.SearchStrategy[Grid]:
    """Grids of one or two axes."""
    kinds: list[st.SearchStrategy[Grid]] = []
    if 1 in dims:
        kinds.append(st.sampled_from([(length,) for length in LENGTHS]))
    if 2 in dims:
        kinds.append(st.sampled_from(IMAGES))
    return st.one_of(kinds)


def matrix_cases(cls: type[Matrix]) -> st.SearchStrategy[MatrixCase]:
    """Sizes of a matrix class: one head, as many heads as channels (width 1), and between."""
    heads = st.sampled_from([(1, 8), (8, 1), (2, 3), (3, 2), (1, 1)])
    draw = st.tuples(grids(), heads, st.integers(1, 3), st.integers(0, 99))
    return draw.map(lambda d: MatrixCase(cls, d[0], d[1][0], d[2], d[1][1], d[3]))


def mixer_cases(info: MixerInfo, traits: Traits | None = None) -> st.SearchStrategy[MixerCase]:
    """Sizes of a registered mixer: its smallest width and twice that."""
    factory, dim = factory_of(info)
    draw = st.tuples(
        st.sampled_from([dim, 2 * dim]), grids((traits or info.traits).dims), st.integers(1, 3), st.integers(0, 99)
    )
    return draw.map(lambda d: MixerCase(factory, *d))
