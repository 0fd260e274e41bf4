"""What of PyTorch's private core (``torch._C`` and its like) is used here, each with the public way behind it.

Each is looked for once, when this is imported. Where a release of PyTorch lacks one, what stands for it is slower or
more careful, never wrong: a question is answered as if somebody looked on, so that kernels and shortcuts step aside.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

_Found = TypeVar("_Found")
AROUND = ("_ForceDispatchKeyGuard", "_dispatch_tls_local_include_set", "_dispatch_tls_local_exclude_set")


def _perhaps() -> bool:
    return True


transformed: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", _perhaps)
"""Whether a transform of ``torch.func`` runs (grad, vjp, jvp, vmap, functionalize); compilers know the answer."""

modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", _perhaps)
"""How many dispatch modes see every operation (counters, fake tensors, tracers)."""

in_jit_trace: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]  # public, but for its stubs

_keys: Any = getattr(torch._C, "_dispatch_keys", None)


def in_forward_mode() -> bool:
    """Whether tensors may have tangents. Publicly a level of forward mode is asked for only tensor by tensor."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def taken_together(gradient: Tensor) -> bool:
    """Whether this is many gradients at once (``is_grads_batched``)."""
    return _keys is None or _keys(gradient).has("Batched")


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


def decomposes(operator: Any, function: Callable[..., Any], shapes: Callable[..., Any]) -> None:
    """Let exporters that do not know an operator put ``function`` in its place.

    Publicly such a function is handed to ``ExportedProgram.run_decompositions`` by whoever exports. Fake tensors of
    open sizes run it too, in place of the operator's ``shapes``, and what it gives may lie otherwise in memory: a
    program then fails, as it holds the operator to the strides that were told. So where nobody notes what is run, they
    get the shapes.
    """
    try:
        from torch._decomp import register_decomposition
    except ImportError:
        return

    def asked(*args: Any) -> Any:
        from torch._subclasses.fake_tensor import FakeTensor  # a second of imports
        from torch.fx.experimental.proxy_tensor import get_proxy_mode

        tensors = [type(t) for t in args if isinstance(t, torch.Tensor)]
        return (shapes if set(tensors) == {FakeTensor} and get_proxy_mode() is None else function)(*args)

    register_decomposition(operator)(asked)
