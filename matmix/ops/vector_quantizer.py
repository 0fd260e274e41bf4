"""Vector quantisation with a codebook that follows its vectors (Transformer-VQ, arXiv 2309.16354, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matmix.ops.function import Function, call
from matmix.ops.precision import full_precision, working_dtype
from matmix.ops.private import in_forward_mode, transformed

FEWEST = 0.01  # a code counts as used at least this often, so that an unused one stays finite


class VectorQuantizer(nn.Module):
    """The nearest of S codewords for every vector of every head.

    The codebook is ``c_sum / max(c_count, 0.01)``: moving averages of the vectors that chose a code and of their
    number, buffers and not parameters. ``after_step`` moves them, by the vectors of all forwards whose gradients were
    taken since; see ``matmix.training``.

    Args:
        heads: codebooks H.
        codes: codewords S of each.
        dim: width E of a vector.
        decay: of the moving averages, for one update.
        scale: standard deviation of a fresh codeword.
        commitment: weight of the loss that pulls vectors to their codewords.
    """

    c_sum: Tensor  # (H, S, E)
    c_count: Tensor  # (H, S)

    def __init__(
        self,
        heads: int,
        codes: int,
        dim: int,
        decay: float = 0.99,
        scale: float = 1.0,
        commitment: float = 1e-4,
    ) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be from 0 to 1, got {decay!r}")
        if not commitment >= 0:
            raise ValueError(f"commitment is the weight of a loss and not negative, got {commitment!r}")
        self.decay, self.commitment = decay, commitment
        self.register_buffer("c_sum", scale * torch.randn(heads, codes, dim))
        self.register_buffer("c_count", torch.ones(heads, codes))
        # A leaf whose gradient is what vectors add up to, so that it grows as those of weights do, over parts and in
        # compiled graphs. No parameter, which optimisers would take, and no buffer, which DistributedDataParallel
        # overwrites with the first process's.
        self._seen = self._nothing()
        self.noted: list[tuple[Tensor | None, ...]] | None = None

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

    def distance(self, vectors: Tensor, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """The squared error, summed over heads: the mean over the real tokens of an example, and then over examples."""
        if mask is None:
            return self.squared_error(vectors, codes).sum(1).mean()
        error = self.squared_error(vectors, codes).masked_fill(~mask.unsqueeze(1), 0)
        return (error.sum((1, 2)) / mask.sum(1).clamp(min=1)).mean()

    # ------------------------------------------------------------------ what training does besides gradients

    def note(self, out: Tensor, vectors: Tensor, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """``out``, and when its gradient comes back, these vectors count for the codebook; masked tokens ``(B, L)`` do
        not. So whatever is only looked at does not count, and a forward that is computed again counts once.

        Outside of training mode, without gradients, and in transforms of ``torch.func``, which are pure, just ``out``.
        """
        if not self.training:
            return out
        if self.noted is not None:
            self.noted.append((vectors, codes, mask))
        if not (torch.is_grad_enabled() and out.requires_grad) or _transformed():
            return out
        if self._seen.device != vectors.device:  # weights were assigned where others had been
            self._seen = self._nothing()
        return call(_Counted, out, vectors, codes, mask, self._seen)

    def auxiliary_loss(self, vectors: Tensor, codes: Tensor, mask: Tensor | None) -> Tensor:
        """The weighted commitment loss of one forward."""
        return self.commitment * self.distance(vectors, codes, mask)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the codebook towards the vectors that counted since the last call, in place; those of all processes."""
        total = self._nothing().detach() if self._seen.grad is None else self._seen.grad
        self._seen.grad = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        sums, counts = total[:, :-1].view_as(self.c_sum), total[:, -1].view_as(self.c_count)
        # Without vectors it stays where it is; a step that overflowed in half precision moves nothing either.
        moves = (counts.sum() > 0) & total.isfinite().all()
        for average, news in ((self.c_sum, sums), (self.c_count, counts)):
            average.copy_(torch.where(moves, self.decay * average + (1 - self.decay) * news, average))

    def _nothing(self) -> Tensor:
        """Zeros ``(H * S, E + 1)``, a leaf: the sum of the vectors of each code, and their number."""
        heads, codes, dim = self.c_sum.shape
        return self.c_sum.new_zeros(heads * codes, dim + 1, dtype=working_dtype(self.c_sum)).requires_grad_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._seen = self._nothing()
        return self

    def extra_repr(self) -> str:
        heads, codes, dim = self.c_sum.shape
        return f"heads={heads}, codes={codes}, dim={dim}, decay={self.decay}"


class _Counted(Function):
    """The identity, with another gradient for ``seen``: the vectors and their number, added up by code."""

    @staticmethod
    def forward(out: Tensor, vectors: Tensor, codes: Tensor, mask: Tensor | None, seen: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, vectors, codes, mask, seen = inputs
        ctx.save_for_backward(vectors, codes, mask)
        ctx.size, ctx.dtype = seen.shape[0], seen.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        vectors, codes, mask = ctx.saved_tensors
        with torch.no_grad(), full_precision(vectors.device):
            heads = codes.shape[1]
            # Every vector is added to its code: one-hot codes would be S times as many numbers.
            places = codes + ctx.size // heads * torch.arange(heads, device=codes.device).view(-1, 1)
            tallies = F.pad(vectors.to(ctx.dtype), (0, 1), value=1.0)
            if mask is not None:
                tallies = tallies.masked_fill(~mask.unsqueeze(1).unsqueeze(-1), 0)
            total = tallies.new_zeros(ctx.size, tallies.shape[-1])
            total.index_add_(0, places.flatten(), tallies.flatten(0, 2))
        return gradient, None, None, None, total


def _transformed() -> bool:
    """In a transform of ``torch.func``, or in forward mode."""
    if torch.compiler.is_compiling():
        return False
    return transformed() or in_forward_mode()
