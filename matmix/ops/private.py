"""What PyTorch has no public name for and is used here nonetheless, each with the public way behind it.

Every name was looked for in PyTorch 2.6 and in the newest release. Where one is gone, the public way takes its place,
which is slower or more careful and never wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

_Found = TypeVar("_Found")
AROUND = ("_ForceDispatchKeyGuard", "_dispatch_tls_local_include_set", "_dispatch_tls_local_exclude_set")


def transformed() -> bool:
    """Whether a transform of ``torch.func`` runs (grad, vjp, jvp, vmap, functionalize); compilers know the answer.

    Publicly nobody tells: then every call counts as one, and takes operations that can be transformed.
    """
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return True if active is None else bool(active())


def differentiating(function: Callable[..., _Found], *args: Any) -> _Found:
    """``function(*args)`` where autograd takes notes, inside of an operator too.

    In the body of an operator PyTorch has put autograd's kernels aside, for this thread. Publicly a thread of its own,
    which starts with them, is the way.
    """
    if not all(hasattr(torch._C, name) for name in AROUND):
        return in_a_thread(function, *args)
    kinds = torch._C.DispatchKey
    keys = torch._C.DispatchKeySet(kinds.AutogradFunctionality)
    keys = keys | torch._C.DispatchKeySet(kinds.AutogradOther) | torch._C.DispatchKeySet(kinds.ADInplaceOrView)
    without = torch._C._dispatch_tls_local_exclude_set() - keys
    guard = torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), without)
    with guard, torch.enable_grad():
        return function(*args)


def in_a_thread(function: Callable[..., _Found], *args: Any) -> _Found:
    """``function(*args)`` in a thread that lives as long, with gradients on."""

    def run() -> _Found:
        with torch.enable_grad():
            return function(*args)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def decomposes(operator: Any, function: Callable[..., Any]) -> None:
    """Let exporters that do not know an operator put ``function`` in its place.

    Publicly such a function is handed to ``ExportedProgram.run_decompositions`` by whoever exports.
    """
    try:
        from torch._decomp import register_decomposition
    except ImportError:
        return
    register_decomposition(operator)(function)
