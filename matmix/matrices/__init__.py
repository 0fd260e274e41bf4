"""Structured matrices, one class a file, and the algebra over them."""

from matmix.matrices.affine import Affine
from matmix.matrices.algebra import ColumnCat, HeadCat, Kron, Masked, Product, Scale, Sum, Transpose
from matmix.matrices.average_pool import AveragePool
from matmix.matrices.banded import Banded
from matmix.matrices.base import Matrix, Shape, all_classes, static
from matmix.matrices.block_diagonal import BlockDiagonal
from matmix.matrices.butterfly import Butterfly
from matmix.matrices.cauchy import Cauchy
from matmix.matrices.chunk_diagonal import ChunkDiagonal
from matmix.matrices.circulant import Circulant
from matmix.matrices.convolution import Convolution
from matmix.matrices.cosine import Cosine
from matmix.matrices.decaying_toeplitz import DecayingToeplitz
from matmix.matrices.dense import Dense
from matmix.matrices.diagonal import Diagonal
from matmix.matrices.diagonal_semiseparable import DiagonalSemiseparable
from matmix.matrices.fourier import Fourier
from matmix.matrices.gate import Gate
from matmix.matrices.gated_semiseparable import GatedSemiseparable
from matmix.matrices.general_quasiseparable import GeneralQuasiseparable
from matmix.matrices.general_semiseparable import GeneralSemiseparable
from matmix.matrices.identity import Identity
from matmix.matrices.interpolation import Interpolation
from matmix.matrices.laplace import Laplace, SquaredReLU
from matmix.matrices.legend import axes
from matmix.matrices.low_rank import LowRank
from matmix.matrices.max_pool import MaxPool
from matmix.matrices.monarch import Monarch
from matmix.matrices.normalise import Normalise
from matmix.matrices.permutation import Permutation
from matmix.matrices.quasiseparable import Quasiseparable
from matmix.matrices.selection import Selection
from matmix.matrices.semiseparable import Semiseparable
from matmix.matrices.softmax import Softmax
from matmix.matrices.toeplitz import CausalToeplitz, Toeplitz
from matmix.matrices.unit_lower_inverse import UnitLowerInverse
from matmix.matrices.vandermonde import Vandermonde

__all__ = [
    "Affine",
    "AveragePool",
    "Banded",
    "BlockDiagonal",
    "Butterfly",
    "Cauchy",
    "CausalToeplitz",
    "ChunkDiagonal",
    "Circulant",
    "ColumnCat",
    "Convolution",
    "Cosine",
    "DecayingToeplitz",
    "Dense",
    "Diagonal",
    "DiagonalSemiseparable",
    "Fourier",
    "Gate",
    "GatedSemiseparable",
    "GeneralQuasiseparable",
    "GeneralSemiseparable",
    "HeadCat",
    "Identity",
    "Interpolation",
    "Kron",
    "Laplace",
    "LowRank",
    "Masked",
    "Matrix",
    "MaxPool",
    "Monarch",
    "Normalise",
    "Permutation",
    "Product",
    "Quasiseparable",
    "Scale",
    "Selection",
    "Semiseparable",
    "Shape",
    "Softmax",
    "SquaredReLU",
    "Sum",
    "Toeplitz",
    "Transpose",
    "UnitLowerInverse",
    "Vandermonde",
    "all_classes",
    "axes",
    "static",
]
