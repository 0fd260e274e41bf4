"""How a fast path becomes an operator of PyTorch: one node for compilers, exporters and counters, on every device.

A fast path is a function of tensors and options. An ``Operator`` is made of what one has to know of it: the same in
PyTorch's operations (the reference, which runs where the kernel does not), the kernels for it and its gradients where
there are some, and the shapes of its results. From that follow, under the name ``matmix::NAME``,

- the operator, which runs the kernel or the reference, with autocast off, and lays its results out as promised;
- ``matmix::NAME_backward``, its gradients, an operator as well: by the kernel, or by autograd through the reference;
- its second derivatives and those after, by autograd through the reference;
- shapes without numbers, for compilers and fake tensors, of both;
- what ``vmap`` makes of both: more samples in one call;
- FLOPs of both: those of the reference's products (PyTorch's counter knows them once ``matmix.cost`` is imported);
- its decomposition into the reference, for exporters that know PyTorch's operators only (ONNX).

In eager mode nobody calls it: an operator written in Python costs some 50 us a call, and the functions of this package
then go to the kernel or the reference themselves. They ask ``seen`` first. Where ``torch.func`` transforms, that says
no: operators written in Python have no rules for ``grad`` and ``jvp`` there, and the reference, made of PyTorch's own,
has them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from matmix.ops.gpu import in_triton, on_device
from matmix.ops.precision import full_precision
from matmix.ops.private import decomposes, differentiating, transformed
from matmix.ops.sizes import joint

OPERATORS: dict[str, Operator] = {}  # all that there are, by their names
BY_TOKENS = (0, 2, 1, 3)  # the order in memory of (B, H, L, W) that is (B, L, H, W), as mixers have tokens
Given = tuple[Any, ...]  # the arguments of an operator: tensors, None where one is absent, and options behind them


def register_flops() -> None:
    """Tell PyTorch's counter of FLOPs all formulas. By ``matmix.cost``, not at once: it would import Triton."""
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    for operator in OPERATORS.values():
        if operator.call not in flop_registry:
            register_flop_formula(operator.call)(operator.flops)
            register_flop_formula(operator.call_back)(operator.flops_back)


def seen() -> bool:
    """Whether somebody looks on who should see an operator, and not what it is made of: a compiler or an exporter.

    Not that for ONNX, which knows none of ours; it would find the reference in the decomposition, later.
    """
    return torch.compiler.is_compiling() and not transformed() and not torch.onnx.is_in_onnx_export()


class Room(NamedTuple):
    """A result to come."""

    shape: Sequence[int]
    dtype: torch.dtype
    order: tuple[int, ...] | None = None  # of the axes in memory, outermost first; None: as they are

    def empty(self, like: Tensor) -> Tensor:
        order = tuple(range(len(self.shape))) if self.order is None else self.order
        room = like.new_empty([self.shape[axis] for axis in order], dtype=self.dtype)
        return room.permute([order.index(axis) for axis in range(len(order))])

    def holding(self, found: Tensor, others: Sequence[Tensor]) -> Tensor:
        """What was found, laid out as promised; from the start of memory of its own."""
        order = range(len(self.shape)) if self.order is None else self.order
        memory = found.untyped_storage().data_ptr()
        if (
            found.dtype == self.dtype
            and found.shape == torch.Size(self.shape)
            and found.permute(*order).is_contiguous()
            and found.storage_offset() == 0
            and all(other.untyped_storage().data_ptr() != memory for other in others)
        ):
            return found
        return self.empty(found).copy_(found.sum_to_size(self.shape))


class Operator:
    """``matmix::NAME`` and ``matmix::NAME_backward``; see above.

    Args:
        name: its name.
        tensors: declarations of the tensors, ``"Tensor values"`` or ``"Tensor? step"``; the first is never absent. All
            have B or 1 samples on their first axis.
        options: declarations of what follows them.
        reference: from tensors and options to a tuple of tensors, in PyTorch's operations.
        rooms: from tensors and options to a ``Room`` for each result.
        kernel: the same as the reference.
        gradients: from the gradients of the results (None: no influence), all arguments and which gradients are wanted,
            to one for each tensor; a gradient may be summed up to the shape of its tensor afterwards. Absent: autograd
            runs through the kernel once more.
        results: how many there are.
        takes: whether the kernels take tensors and options that are on their device.
    """

    def __init__(
        self,
        name: str,
        tensors: Sequence[str],
        options: Sequence[str],
        *,
        reference: Callable[..., tuple[Tensor, ...]],
        rooms: Callable[..., tuple[Room, ...]],
        kernel: Callable[..., tuple[Tensor, ...]],
        gradients: Callable[..., Sequence[Tensor | None]] | None = None,
        results: int = 1,
        takes: Callable[..., bool] = lambda *_: True,
    ) -> None:
        self.name, self.count, self.results = name, len(tensors), results
        self.reference, self.rooms, self.takes = reference, rooms, takes
        self.kernel, self.gradients = kernel, gradients
        given = ", ".join((*tensors, *options))
        back = ", ".join((*(f"Tensor? d_{index}" for index in range(results)), given))
        self.forward = self._define(name, f"({given}) -> ({', '.join(['Tensor'] * results)})", self._run, self._shapes)
        schema = f"({back}, bool[] wanted) -> Tensor[]"
        self.backward = self._define(f"{name}_backward", schema, self._run_back, self._shapes_back)
        self.forward.register_autograd(self._derivative, setup_context=self._keep)
        self.forward.register_vmap(self._vmap)
        self.backward.register_vmap(self._vmap_back)

        self.call = getattr(torch.ops.matmix, name)
        self.call_back = getattr(torch.ops.matmix, f"{name}_backward")
        decomposes(self.call.default, self.decomposed, self._shapes)
        OPERATORS[name] = self

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        found = self.call(*args)
        return (found,) if self.results == 1 else tuple(found)

    # ------------------------------------------------------------------ the operator

    @staticmethod
    def _define(name: str, schema: str, run: Callable[..., Any], shapes: Callable[..., Any]) -> Any:
        operator = torch.library.custom_op(f"matmix::{name}", run, mutates_args=(), schema=schema)
        operator.register_fake(shapes)
        return operator

    def _run(self, *args: Any) -> Any:
        like = args[0]
        with torch.no_grad(), full_precision(like.device), on_device(like.device):
            by_kernel = in_triton(*_tensors(args)) and self.takes(*args)
            found = self.kernel(*args) if by_kernel else self.reference(*args)
        return self._answer(_held(found, self.rooms(*args), _tensors(args)))

    def _shapes(self, *args: Any) -> Any:
        return self._answer([room.empty(args[0]) for room in self.rooms(*args)])

    def _answer(self, results: list[Any]) -> Any:
        return results[0] if self.results == 1 else tuple(results)

    def _keep(self, ctx: Any, inputs: Given, output: Any) -> None:
        ctx.options = inputs[self.count :]
        ctx.save_for_backward(*inputs[: self.count])
        ctx.set_materialize_grads(False)

    def _derivative(self, ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[: self.count])
        args = (*d_results, *ctx.saved_tensors, *ctx.options, wanted)
        # Where a derivative of the derivative is wanted, in operations that have any number of them.
        found = self._through(self.reference, args, again=True) if torch.is_grad_enabled() else self.call_back(*args)
        gradients = iter(found)
        return (*(next(gradients) if one else None for one in wanted), *[None] * len(ctx.options))

    # ------------------------------------------------------------------ its gradients

    def _parts(self, args: Given) -> tuple[Given, Given, list[bool]]:
        """Gradients of the results, arguments of the operator, and which gradients are wanted."""
        return args[: self.results], args[self.results : -1], args[-1]

    def _run_back(self, *args: Any) -> list[Tensor]:
        d_results, given, wanted = self._parts(args)
        like = given[0]
        with full_precision(like.device), on_device(like.device):
            by_kernel = in_triton(*_tensors(args)) and self.takes(*given)
            if by_kernel and self.gradients is not None:
                found = _chosen(self.gradients(d_results, given, wanted), wanted)
            else:
                found = differentiating(self._of_copies, self.kernel if by_kernel else self.reference, args)
        return _held(found, self._rooms_back(given, wanted), _tensors(args))

    def _rooms_back(self, given: Given, wanted: list[bool]) -> list[Room]:
        return [_by_tokens(tensor) for tensor in _chosen(given, wanted)]

    def _shapes_back(self, *args: Any) -> list[Tensor]:
        _, given, wanted = self._parts(args)
        return [room.empty(given[0]) for room in self._rooms_back(given, wanted)]

    def _of_copies(self, function: Callable[..., tuple[Tensor, ...]], args: Given) -> list[Tensor]:
        """``_through`` of arguments that take no gradients themselves."""
        args = tuple(t.detach() if isinstance(t, Tensor) else t for t in args)
        for leaf in _chosen(args[self.results : -1], args[-1]):
            leaf.requires_grad_()
        return self._through(function, args, again=False)

    def _through(self, function: Callable[..., tuple[Tensor, ...]], args: Given, *, again: bool) -> list[Tensor]:
        """The wanted gradients, by autograd through the function; ``again``: to be differentiated once more."""
        d_results, given, wanted = self._parts(args)
        leaves = _chosen(given, wanted)
        pairs = [
            (y, d.to(y.dtype))
            for y, d in zip(function(*given), d_results, strict=True)
            if d is not None and y.requires_grad
        ]
        if not pairs or not leaves:
            return [torch.zeros_like(leaf) for leaf in leaves]
        results, gradients = zip(*pairs, strict=True)
        return list(torch.autograd.grad(results, leaves, gradients, create_graph=again, materialize_grads=True))

    # ------------------------------------------------------------------ what others make of both

    def _vmap(self, info: Any, in_dims: Given, *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        wide, samples = self._wide(size, in_dims, args, range(self.count))
        found = self.call(*wide)
        parts = [t.unflatten(0, (size, samples)) for t in ([found] if self.results == 1 else found)]
        return self._answer(parts), self._answer([0] * self.results)

    def _vmap_back(self, info: Any, in_dims: Given, *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        wide, samples = self._wide(size, in_dims, args, range(self.results + self.count), whole=True)
        found = []
        for gradient, place in zip(self.call_back(*wide), self._wanted(args), strict=True):
            gradient = gradient.unflatten(0, (size, samples))
            shared = self._samples(args[place], in_dims[place]) < samples
            found.append(gradient.sum(1, keepdim=True) if shared else gradient)
        return found, [0] * len(found)

    def _wanted(self, args: Given) -> list[int]:
        return [self.results + place for place, one in enumerate(args[-1]) if one]

    @staticmethod
    def _samples(tensor: Tensor, dim: int | None) -> int:
        return tensor.shape[0] if dim is None else tensor.movedim(dim, 0).shape[1]

    def _wide(
        self, size: int, in_dims: Given, args: Given, places: range, *, whole: bool = False
    ) -> tuple[list[Any], int]:
        """Arguments with the mapped axis folded into the samples, and how many samples each call had.

        What no call has of its own and all samples share stays one sample, unless all is to be ``whole``.
        """
        given = {place: args[place] for place in places if args[place] is not None}
        samples = joint([self._samples(tensor, in_dims[place]) for place, tensor in given.items()])
        wide = list(args)
        for place, tensor in given.items():
            dim = in_dims[place]
            if dim is None and tensor.shape[0] == 1 and not whole:
                continue
            first = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
            wide[place] = first.expand(size, samples, *first.shape[2:]).flatten(0, 1)
        return wide, samples

    def flops(self, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
        """Of the products of the reference; a formula for PyTorch's counter, which gives shapes."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.reference(*_on_meta(shapes[: self.count]), *shapes[self.count :])
        return counter.get_total_flops()

    def flops_back(self, *shapes: Any, out_shape: Any = None, **_: Any) -> int:
        """Of the gradients of these products, which are two products each where both factors want one."""
        from torch.utils.flop_counter import FlopCounterMode

        d_results, given, wanted = self._parts(shapes)
        args = (*_on_meta(d_results), *_on_meta(given[: self.count]), *given[self.count :], wanted)
        with FlopCounterMode(display=False) as counter:
            differentiating(self._of_copies, self.reference, args)
        return counter.get_total_flops() - self.flops(*given)

    def decomposed(self, *args: Any) -> Any:
        rooms = self.rooms(*args)
        return self._answer([t.to(room.dtype) for t, room in zip(self.reference(*args), rooms, strict=True)])


def _tensors(args: Given) -> list[Tensor]:
    return [t for t in args if isinstance(t, Tensor)]


def _chosen(tensors: Sequence[Any], wanted: list[bool]) -> list[Any]:
    return [t for t, one in zip(tensors, wanted, strict=False) if one]


def _held(found: Sequence[Tensor], rooms: Sequence[Room], given: list[Tensor]) -> list[Tensor]:
    """Results in their rooms, none in the memory of an argument or of another."""
    held: list[Tensor] = []
    for tensor, room in zip(found, rooms, strict=True):
        held.append(room.holding(tensor.detach(), [*given, *held]))
    return held


def _by_tokens(tensor: Tensor) -> Room:
    """Room for a gradient: four axes ``(B, H, L, W)`` by tokens, as mixers have them; others as they are."""
    return Room(tensor.shape, tensor.dtype, BY_TOKENS if tensor.dim() == 4 else None)


def _on_meta(shapes: Given) -> list[Tensor | None]:
    return [None if shape is None else torch.empty(shape, device="meta") for shape in shapes]
