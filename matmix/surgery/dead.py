"""Dead parameters: those that what a module gives does not depend on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn


def dead_parameters(module: nn.Module, call: Callable[[nn.Module], Any]) -> int:
    """Parameters that no gradient reaches from a random sum of all that `call(module)` gives, in eval mode.

    It runs on a copy, which does not touch the module's own state. Of a layer that makes queries, keys and values at
    once some rows may be dead: a row of a matrix counts if its gradient is zero. A vector counts as a whole: some of
    its entries are zero by rounding (keys need no bias). So does a table of embeddings, of which a call reads few rows.
    """
    twin = copy.deepcopy(module).eval().requires_grad_(True)
    every = list(twin.parameters())
    tables = {id(p) for part in twin.modules() if isinstance(part, nn.Embedding) for p in part.parameters(False)}
    draw = torch.Generator().manual_seed(1)
    with torch.enable_grad():
        tensors = [t for t in pytree.tree_leaves(call(twin)) if isinstance(t, Tensor) and t.requires_grad]
        if not tensors:
            return sum(p.numel() for p in every)
        losses = [(t * torch.randn(t.shape, generator=draw).to(t)).sum() for t in tensors]
        grads = torch.autograd.grad(losses, every, allow_unused=True)
    dead = 0
    for p, grad in zip(every, grads, strict=True):
        if grad is None:
            dead += p.numel()
        else:
            whole = p.dim() < 2 or id(p) in tables
            rows = grad.reshape(1, -1) if whole else grad.flatten(1)
            dead += int(rows.eq(0).all(1).sum()) * rows.shape[1]
    return dead
