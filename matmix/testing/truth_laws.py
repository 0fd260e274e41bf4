"""The laws of one truth: the product that runs, its gradients and those of the shown matrix are the matrix's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from matmix.mixers.base import Context, Mixer, drop_padding
from matmix.ops.seed import fork_seed
from matmix.testing.cases import MixerCase
from matmix.testing.compare import close
from matmix.testing.mixer_laws import law, slow_law, some_mask

STEPS = (1e-6, 1e-7)
"""Of central differences in float64. Between the two points of a step a ReLU or a maximum may change its mind, which
says nothing about a gradient: the better one of two steps counts."""
LIMIT = 1e-5
"""Error of a difference quotient over the sum of the sizes of its terms."""


@law
def product_is_matrix(case: MixerCase) -> None:
    """A shorter way than over the matrix (``product``, ``mix``) gives the outputs, every gradient and the rest that
    ``matrix.to_dense() @ values`` gives: in training mode too, and with a mask."""
    kind = type(case.build())
    if (kind.product, kind.mix) != (Mixer.product, Mixer.mix):
        _product_is_matrix(case)


@slow_law
def matmul_is_matrix(case: MixerCase) -> None:
    """The same of every mixer: the gradients of ``matrix.matmul`` are those of the dense product."""
    _product_is_matrix(case)


def _product_is_matrix(case: MixerCase) -> None:
    mixer = case.build()
    masks = [None] if mixer.traits.mask is None else [None, some_mask(case)]
    made_of_others = type(mixer).mix is not Mixer.mix
    for training, mask in ((training, mask) for training in case.modes for mask in masks):
        what = f"{'training' if training else 'eval'} mode{'' if mask is None else ', with a mask'}"
        shorter, longer = (_run(case, way, training, mask) for way in (_as_it_runs, _by_matrix))
        largest = max((float(t.abs().max()) for name, t in longer.items() if name.startswith(_GRADIENT)), default=0.0)
        for name, expected in longer.items():
            if name not in shorter and made_of_others:  # the parts have rests of their own
                continue
            assert name in shorter, f"{what}: {name} is there by way of the matrix only"
            if not expected.is_floating_point():
                assert torch.equal(shorter[name], expected), f"{what}: {name} differs"
                continue
            scale = float(expected.abs().max()) if expected.numel() else 0.0
            if name.startswith(_GRADIENT):  # which may be zero but for the rounding of what cancels in it
                scale = max(scale, 1e-3 * largest)
            close(shorter[name], expected, f"{what}: {name}", scale=scale)


_GRADIENT, _REST = "the gradient of ", "tensor of the rest number "
Way = Callable[[Mixer, Tensor, Context], tuple[Tensor, Any]]


def _as_it_runs(mixer: Mixer, x: Tensor, context: Context) -> tuple[Tensor, Any]:
    """Outputs, and the rest where there is one."""
    if type(mixer).mix is not Mixer.mix:
        return mixer.mix(x, context), None
    mixed, rest = mixer.product(x, context)
    return mixer.merge(mixed, rest), rest


def _by_matrix(mixer: Mixer, x: Tensor, context: Context) -> tuple[Tensor, Any]:
    matrix, values, rest = mixer.project(x, context)
    return mixer.merge(matrix.to_dense() @ values, rest), rest


def _run(case: MixerCase, way: Way, training: bool, mask: Tensor | None) -> dict[str, Tensor]:
    """Everything that one way gives, by name; the mixer is new, since training may change it."""
    mixer, x = case.build().train(training), case.tokens().requires_grad_()
    with fork_seed(case.seed, "forward"):  # the same for whoever draws
        out, rest = way(mixer, drop_padding(x, mask), mixer._context(x, None, mask))
    out = drop_padding(out, mask)
    leaves = [leaf for leaf in pytree.tree_leaves(rest) if isinstance(leaf, Tensor)]
    found = {"the outputs": out} | {f"{_REST}{index}": leaf for index, leaf in enumerate(leaves)}
    found = {name: tensor.detach() for name, tensor in found.items()}
    inputs = {"the tokens": x} | dict(mixer.named_parameters())
    wanted = {_GRADIENT + name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
    loss = (out * case.tokens(name="weight")).sum()
    gradients: Any = [None] * len(wanted)
    if loss.requires_grad:
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    for (name, tensor), gradient in zip(wanted.items(), gradients, strict=True):
        found[name] = torch.zeros_like(tensor) if gradient is None else gradient  # to the loss they are one
    return found


@law
def matrix_gradient(case: MixerCase) -> None:
    """The gradient through the shown matrix is that of its entries: along a random direction of the tokens and all
    parameters it equals their difference quotient, in training mode too.

    A mixer whose traits say ``straight_through`` has by definition the gradient of another function: of the one in
    which all that it detaches is constant. It is held to that one, and the entries' own must then differ.
    """
    for training in case.modes:
        what = f"{'training' if training else 'eval'} mode"
        line = _Line(case, training)
        through = line.mixer.traits.straight_through
        error, quotient, slope = line.slopes(held=through)
        held = ", what is detached held constant," if through else ""
        assert error < LIMIT, (
            f"{what}: the derivative of the entries{held} is {quotient:.6g}, that through the matrix {slope:.6g}"
        )
        if through and case.length >= 4:
            assert line.slopes(held=False)[0] > LIMIT, f"{what}: straight_through is said of the entries' own gradient"


class _Line:
    """A weighted sum of the entries of a mixer's matrix, along a line through its tokens and parameters."""

    def __init__(self, case: MixerCase, training: bool) -> None:
        self.case, self.mixer = case, case.build().train(training)
        self.x = case.tokens().requires_grad_()
        self.inputs = [self.x, *self.mixer.parameters()]
        self.before = [(buffer, buffer.clone()) for buffer in self.mixer.buffers()]
        self.constants: list[Tensor] = []
        with fork_seed(case.seed, "directions"):
            self.ways = [torch.randn(t.shape, dtype=t.dtype).to(t.device) for t in self.inputs]
        self.terms = self._gradient()

    def _gradient(self) -> list[float]:
        """What every input adds to the slope by autograd."""
        with _Detaching(self.constants.append, None):
            total = self._sum()
        if not total.requires_grad:
            return [0.0]
        wanted = [(tensor, way) for tensor, way in zip(self.inputs, self.ways, strict=True) if tensor.requires_grad]
        gradients = torch.autograd.grad(total, [tensor for tensor, _ in wanted], allow_unused=True)
        return [float((g * way).sum()) for g, (_, way) in zip(gradients, wanted, strict=True) if g is not None]

    def _sum(self) -> Tensor:
        """With gradients on, which some take another way for; no run is seen in the next one's state."""
        with torch.no_grad():
            for buffer, before in self.before:
                buffer.copy_(before)
        with fork_seed(self.case.seed, "forward"):  # the same for whoever draws
            entries = self.mixer.matrix(self.x).to_dense()
        with fork_seed(self.case.seed, "weights"):
            weights = torch.randn(entries.shape, dtype=torch.float64).to(entries.device, entries.dtype)
        return (entries * weights).sum()

    def _at(self, step: float, held: bool) -> float:
        with torch.no_grad():
            start = [tensor.clone() for tensor in self.inputs]
            for tensor, way in zip(self.inputs, self.ways, strict=True):
                tensor.add_(way, alpha=step)
        with _Detaching(None, iter(self.constants)) if held else nullcontext():
            total = self._sum()
        with torch.no_grad():
            for tensor, before in zip(self.inputs, start, strict=True):
                tensor.copy_(before)
        return float(total.detach())

    def slopes(self, held: bool) -> tuple[float, float, float]:
        """The relative error of the better difference quotient, that quotient, and the slope by autograd."""
        slope, size = sum(self.terms), sum(map(abs, self.terms))
        quotients = ((self._at(step, held) - self._at(-step, held)) / (2 * step) for step in STEPS)
        best = min(quotients, key=lambda quotient: abs(quotient - slope))
        # Rounding of sums of some hundred leaves 1e-7 of a quotient whose own size is nothing.
        return abs(best - slope) / max(size, abs(best), 0.1), best, slope


class _Detaching(TorchFunctionMode):
    """Notes what a run detaches; or puts what was noted in place of what this run detaches, one after the other."""

    def __init__(self, note: Callable[[Tensor], None] | None, noted: Iterator[Tensor] | None) -> None:
        super().__init__()
        self.note, self.noted = note, noted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func not in (Tensor.detach, torch.detach):
            return out
        if self.note is not None:
            self.note(out.clone())
        return out if self.noted is None else next(self.noted)
