"""The laws of matrices and mixers, for every package that defines some.

::

    from matmix.testing import check_matrix, check_mixer

    def test_my_matrix():
        check_matrix(MyMatrix)

    def test_my_mixer():
        check_mixer("my_mixer")

The laws need torch alone; ``matmix.testing.strategies`` draws their sizes with hypothesis.
"""

from matmix.testing.cases import MatrixCase, MixerCase, cast, dense_up_to
from matmix.testing.check import apply_law, check_matrix, check_mixer, factory_of, mixer_cases
from matmix.testing.compare import TOLERANCE, close, differ, same
from matmix.testing.matrix_laws import MATRIX_LAWS
from matmix.testing.mixer_laws import MIXER_LAWS, SLOW_MIXER_LAWS
from matmix.testing.properties import PROPERTIES

__all__ = [
    "MATRIX_LAWS",
    "MIXER_LAWS",
    "PROPERTIES",
    "SLOW_MIXER_LAWS",
    "TOLERANCE",
    "MatrixCase",
    "MixerCase",
    "apply_law",
    "cast",
    "check_matrix",
    "check_mixer",
    "close",
    "dense_up_to",
    "differ",
    "factory_of",
    "mixer_cases",
    "same",
]
