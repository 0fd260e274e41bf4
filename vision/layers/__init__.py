"""Parts of image models: one small class each. Maps are channels-last, ``(B, rows, columns, C)``, throughout."""

from vision.layers.block import Block, Stage, add
from vision.layers.head import POOLS, Head, MlpHead
from vision.layers.mlp import ACTIVATIONS, Mlp, SquaredReLU
from vision.layers.norms import NORMS, MapNorm, make_norm
from vision.layers.stems import ConvDownsample, ConvStem, conv_grid

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "POOLS",
    "Block",
    "ConvDownsample",
    "ConvStem",
    "Head",
    "MapNorm",
    "Mlp",
    "MlpHead",
    "SquaredReLU",
    "Stage",
    "add",
    "conv_grid",
    "make_norm",
]
