"""A batch in pieces, where large intermediates cost more than the arithmetic on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# A C allocator hands large blocks back to the system, and the page faults of getting them anew cost more than a layer
# that works on them.
PIECE_BYTES = 1 << 20


def room(each: int = PIECE_BYTES) -> int:
    """Bytes of a piece, of which every thread of the CPU has ``each``: starting threads costs some of the gain."""
    return each * torch.get_num_threads()


def pieces(x: Tensor, layer: nn.Module, inside: float) -> tuple[Tensor, ...]:
    """The samples of ``x`` (B, ...) that run through a layer together; all, where autograd keeps what is inside.

    Args:
        x: input, on the CPU for pieces to pay.
        layer: whose parameters may ask for a graph.
        inside: the largest intermediate over the input.
    """
    graph = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in layer.parameters()))
    if torch.compiler.is_compiling() or graph or x.device.type != "cpu" or x.numel() == 0:
        return (x,)
    each = inside * x[0].numel() * x.itemsize
    return (x,) if x.shape[0] * each <= 2 * room() else x.split(max(1, int(room() // each)))
