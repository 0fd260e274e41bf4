"""A mixer of your own, put under the library's laws and shown: attention sharpened by its neighbourhood.

    python examples/own_mixer.py                                          # checks it and draws its matrices
    matmix train digits --import examples/own_mixer.py --mixer contrast   # and trains it

`project` says which matrix multiplies which values; all else (forward, padding, the picture, export) follows.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import matmix
from matmix import Mixer, Traits, register
from matmix.matrices import AveragePool, Softmax
from matmix.mixers.base import Context, Grid, Projected, merge_heads, split_heads


@register("contrast", matrix="Softmax - AveragePool per head", cost="O(L^2 D)", source="examples/own_mixer.py")
class Contrast(Mixer):
    """``M = softmax(Q K^T / sqrt(W)) - P``, P the mean over a token's neighbours.

    Args:
        heads: H, a divisor of ``dim``.
        window: tokens a side that the mean is taken over, odd.
    """

    traits = Traits(data_dependent=True)

    def __init__(self, dim: int, grid: Grid | None = None, *, heads: int = 2, window: int = 3) -> None:
        super().__init__(dim, grid)
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def project(self, x: Tensor, context: Context) -> Projected:
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(x).chunk(3, -1))
        near = AveragePool.of(v, context.grid, self.window)
        return Projected(Softmax(q, k) - near, v)

    def merge(self, mixed: Tensor, rest: None) -> Tensor:
        return self.proj(merge_heads(mixed))


if __name__ == "__main__":
    from matmix.inspect import show
    from matmix.testing import check_mixer

    check_mixer("contrast", laws=["product", "matrix_gradient", "layers_are_called"])  # all of them without `laws`

    mixer = matmix.create_mixer("contrast(heads=4)", dim=64)
    x = torch.randn(1, 32, 64)
    M = mixer.matrix(x)
    print(M)
    print("rows of M add up to 0:", torch.allclose(M.to_dense().sum(-1), torch.zeros(()), atol=1e-5))
    print("picture:", show(mixer, Path("contrast.png"), x))
