"""Gradient checkpointing for any model: blocks keep their inputs alone, and run a second time in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(model: nn.Module) -> None:
    """Have the blocks of a model recomputed: by its own method where it has one (timm's `set_grad_checkpointing`,
    transformers' `gradient_checkpointing_enable`), else the modules of a class of its own in its lists of modules.

    Raises:
        ValueError: if there is none of these.
    """
    if not _visit(model):
        raise ValueError(
            f"Recipe.checkpointing=True: {type(model).__name__} has neither set_grad_checkpointing, "
            "gradient_checkpointing_enable nor a list of blocks (nn.ModuleList, nn.Sequential)"
        )


def _visit(module: nn.Module) -> int:
    """How many places were found."""
    if _by_itself(module):
        return 1
    found = 0
    for child in module.children():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or type(child).__module__.startswith("torch.nn"):
            found += _visit(child)
            continue
        found += 1
        if not _by_itself(child):
            # Bound to the block, not closed over it: a copy of the model runs its own blocks.
            child.forward = MethodType(_forward, child)
    return found


def _by_itself(module: nn.Module) -> bool:
    """Have a module do it by its own method, where it has one."""
    cls = type(module)  # the class is asked: what wraps a module answers for it as well
    if hasattr(cls, "set_grad_checkpointing"):
        module.set_grad_checkpointing(True)  # type: ignore[operator]
        return True
    if getattr(cls, "supports_gradient_checkpointing", False):
        module.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        return True
    return False


def _forward(block: nn.Module, *args: Any, **named: Any) -> Any:
    def plain(*args: Any, **named: Any) -> Any:
        return type(block).forward(block, *args, **named)

    if not (block.training and torch.is_grad_enabled()):
        return plain(*args, **named)
    if torch.compiler.is_compiling():  # a compiled program computes again numbers alone, and moves no statistics
        return checkpoint(plain, *args, use_reentrant=False, **named)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _once(block)

    return checkpoint(plain, *args, use_reentrant=False, context_fn=contexts, **named)


@contextmanager
def _once(block: nn.Module) -> Iterator[None]:
    """Inside, running statistics of batch norms stay: the first forward has moved them."""
    norms = [module for module in block.modules() if hasattr(module, "running_mean") and hasattr(module, "momentum")]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
