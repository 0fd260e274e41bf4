"""Functions with a gradient of their own, called without what a call through their signature costs.

``autograd.Function`` has two forms. Only that with ``setup_context`` goes into ``torch.func``, but every call of it
binds the arguments to the signature of ``forward``, by ``inspect``: 60 microseconds, where a small product takes ten.
"""

from __future__ import annotations

from types import new_class
from typing import Any, ClassVar

import torch
from torch import Tensor

from matmix.ops.private import taken_together, transformed


class Function(torch.autograd.Function):
    """A function in the form with ``setup_context``, to be called by ``call``."""

    direct: ClassVar[type[torch.autograd.Function]]  # the same in the other form

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)

        def forward(ctx: Any, *args: Any) -> Any:
            output = cls.forward(*args)
            cls.setup_context(ctx, args, output)
            return output

        methods = {"forward": forward, "backward": cls.backward, "jvp": cls.jvp}
        body = {name: staticmethod(method) for name, method in methods.items()}
        cls.direct = new_class(cls.__name__, (torch.autograd.Function,), {}, lambda names: names.update(body))


def differentiated_once(gradient: Tensor) -> bool:
    """Whether a backward pass may take kernels without gradients of their own: nobody differentiates it again, takes
    many gradients at once (``is_grads_batched``) or transforms it."""
    return (
        not torch.is_grad_enabled() and type(gradient) is Tensor and not transformed() and not taken_together(gradient)
    )


def call(function: type[Function], *args: Any) -> Any:
    """``function.apply(*args)``; compilers and ``torch.func`` see the function as it is written."""
    if torch.compiler.is_compiling() or transformed():
        return function.apply(*args)
    return function.direct.apply(*args)
