"""A batch in pieces, where large intermediates cost more than the arithmetic on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from matmix.ops.plain import is_unwatched

# A C allocator hands large blocks back to the system, and the page faults of getting them anew cost more than a layer
# that works on them.
PIECE_BYTES = 1 << 20


def piece_bytes(each: int = PIECE_BYTES) -> int:
    """Bytes of a piece, of which every thread of the CPU has ``each``: starting threads costs some of the gain."""
    return each * torch.get_num_threads()


def pieces(x: Tensor, layer: nn.Module, inside: float) -> tuple[Tensor, ...]:
    """The samples of ``x`` (B, ...) that run through a layer together.

    All, where autograd keeps what is inside, in training, and where somebody looks on (``is_unwatched``).

    Args:
        x: input, on the CPU for pieces to pay.
        layer: what runs, outside of training.
        inside: the largest intermediate over the input.
    """
    graph = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in layer.parameters()))
    if torch.compiler.is_compiling() or graph or x.device.type != "cpu" or x.numel() == 0:
        return (x,)
    each = inside * x[0].numel() * x.itemsize
    if x.shape[0] * each <= 2 * piece_bytes() or not is_unwatched(layer):
        return (x,)
    return x.split(max(1, int(piece_bytes() // each)))
