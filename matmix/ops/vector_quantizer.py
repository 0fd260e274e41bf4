"""Vector quantisation with a codebook that follows its vectors (Transformer-VQ, arXiv 2309.16354, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matmix.ops.precision import full_precision, working_dtype

FEWEST = 0.01  # a code counts as used at least this often, so that an unused one stays finite


class VectorQuantizer(nn.Module):
    """The nearest of S codewords for every vector of every head.

    The codebook is ``c_sum / max(c_count, 0.01)``: moving averages of the vectors that chose a code and of their
    number, buffers and not parameters.

    Args:
        heads: codebooks H.
        codes: codewords S of each.
        dim: width E of a vector.
        decay: of the moving averages, for one update.
        scale: standard deviation of a fresh codeword.
    """

    c_sum: Tensor  # (H, S, E)
    c_count: Tensor  # (H, S)

    def __init__(self, heads: int, codes: int, dim: int, decay: float = 0.99, scale: float = 1.0) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be from 0 to 1, got {decay!r}")
        self.decay = decay
        self.register_buffer("c_sum", scale * torch.randn(heads, codes, dim))
        self.register_buffer("c_count", torch.ones(heads, codes))

    def codebook(self) -> Tensor:
        """``(H, S, E)`` in float32 at least, a constant to the gradient."""
        dtype = working_dtype(self.c_sum)
        return self.c_sum.detach().to(dtype) / self.c_count.detach().to(dtype).clamp(min=FEWEST).unsqueeze(-1)

    def forward(self, vectors: Tensor) -> Tensor:
        """The codes ``(B, H, L)`` int64 of vectors ``(B, H, L, E)``, O(L S E) a head."""
        with torch.no_grad(), full_precision(vectors.device):
            book = self.codebook().to(working_dtype(vectors, self.c_sum))
            # |v - c|^2 without |v|^2, which all codes of a vector share.
            return (book.square().sum(-1).unsqueeze(-2) - 2 * vectors.to(book.dtype) @ book.mT).argmin(-1)

    def words(self, codes: Tensor) -> Tensor:
        """The codewords ``(B, H, L, E)`` of codes ``(B, H, L)``."""
        book = self.codebook()
        places = codes.unsqueeze(-1).expand(*codes.shape, book.shape[-1])
        return book.expand(codes.shape[0], -1, -1, -1).gather(2, places)

    def squared_error(self, vectors: Tensor, codes: Tensor) -> Tensor:
        """Squared distance of each vector from its codeword, ``(B, H, L)``; the vectors get its gradient."""
        return (vectors - self.words(codes).to(vectors.dtype)).square().sum(-1)

    def targets(self, vectors: Tensor, codes: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The moving averages ``c_sum`` and ``c_count`` after these vectors; masked tokens ``(B, L)`` do not count."""
        with torch.no_grad(), full_precision(vectors.device):
            dtype = working_dtype(vectors, self.c_sum)
            heads, size, width = self.c_sum.shape
            # Every vector is added to its code: one-hot codes would be S times as many numbers.
            place = (codes + size * torch.arange(heads, device=codes.device).view(-1, 1)).flatten()
            vectors, number = vectors.to(dtype), torch.ones_like(codes, dtype=dtype)
            if mask is not None:
                padding = ~mask.unsqueeze(1)
                vectors, number = vectors.masked_fill(padding.unsqueeze(-1), 0), number.masked_fill(padding, 0)
            total = vectors.new_zeros(heads * size, width).index_add(0, place, vectors.reshape(-1, width))
            count = number.new_zeros(heads * size).index_add(0, place, number.flatten())
            total, count = total.view(heads, size, width), count.view(heads, size)
            keep = self.decay
            return keep * self.c_sum + (1 - keep) * total, keep * self.c_count + (1 - keep) * count

    @torch.no_grad()
    def update_(self, vectors: Tensor, codes: Tensor, mask: Tensor | None = None) -> None:
        """Move the codebook towards these vectors, in place."""
        total, count = self.targets(vectors, codes, mask)
        self.c_sum.copy_(total)
        self.c_count.copy_(count)

    def extra_repr(self) -> str:
        heads, codes, dim = self.c_sum.shape
        return f"heads={heads}, codes={codes}, dim={dim}, decay={self.decay}"
