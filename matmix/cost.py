"""What a model costs: parameters, multiply-accumulates and FFT operations of one forward; bytes of state.

Conventions, so that columns of a table mean the same for every mixer:

- A multiply-accumulate (MAC) is one multiplication and one addition: matrix products, convolutions (depthwise and
  grouped ones by their own size), scaled dot product attention, recurrent cells. A product of complex matrices is four
  real ones. Average pooling counts as the depthwise convolution with constant weights that it is.
- An FFT of N points is ``5 N log2 N`` real operations, one of real data ``2.5 N log2 N`` (the convention of FFTW's
  benchmarks, whatever algorithm runs). They stand apart, because they are not MACs; two of them take the arithmetic of
  one MAC.
- Elementwise work (activations, norms, gates, scans that are written elementwise) is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from matmix.arguments import checking_arguments
from matmix.mixers.base import Mixer
from matmix.ops.layers import ShortConv
from matmix.ops.operator import register_flops

aten = torch.ops.aten
register_flops()


@dataclass(frozen=True)
class CostReport:
    """The cost of one forward with the given inputs; the weights are counted once where they are shared."""

    parameters: int
    trainable: int
    macs: int
    """Multiply-accumulates without the FFTs."""
    fft_flops: int
    """Real operations of the FFTs."""
    uncounted: tuple[str, ...] = ()
    """Operators that ran and that no formula is known for (fused kernels of a package): what they do is missing."""

    def __str__(self) -> str:
        text = f"{self.parameters:,} parameters, {self.macs:,} MACs, {self.fft_flops:,} FFT operations"
        return text + (f", without {', '.join(self.uncounted)}" if self.uncounted else "")


@checking_arguments()
def count(model: nn.Module, *inputs: Any, **options: Any) -> CostReport:
    """Run ``model(*inputs, **options)`` once, in eval mode and without gradients, and count.

    A kernel that is launched past PyTorch's dispatcher (a bare Triton launch) is not seen; count on the CPU then.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    seen = _Unknown()
    with evaluating(model), torch.no_grad(), frozen(model), seen, counter:
        model(*inputs, **options)
    by_operator = counter.get_flop_counts().get("Global", {})
    fft = sum(flops for operator, flops in by_operator.items() if operator in _FFTS)
    parameters = list(model.parameters())
    return CostReport(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        macs=(sum(by_operator.values()) - fft) // 2,
        fft_flops=fft,
        uncounted=tuple(sorted(seen.names)),
    )


@checking_arguments()
def state_bytes(model: nn.Module, *inputs: Any, **options: Any) -> int | None:
    """Bytes that the mixers of a model keep of one sequence, behind these inputs, to go on token by token.

    A fixed state, the keys and values of attention so far, the windows of short convolutions, also of those in front of
    a mixer. A mixer that mixes no tokens keeps nothing. None where a mixer is not recurrent: whoever goes on from there
    reads everything again. The model runs once with the inputs, in eval mode and without gradients, for the number of
    tokens that each mixer sees.
    """
    kept = list(_outermost(model))
    if _stateless(kept):
        return None
    with evaluating(model), torch.no_grad(), _seeing(kept) as seen:
        model(*inputs, **options)
    return _bytes_behind(model, seen)


@checking_arguments()
def tokens(model: nn.Module, *inputs: Any, **options: Any) -> int | None:
    """How many tokens each mixer of a model sees of these inputs; None where they see different numbers, or none is."""
    with evaluating(model), torch.no_grad(), _seeing(list(_outermost(model))) as seen:
        model(*inputs, **options)
    return _common(seen)


class Measured(NamedTuple):
    """What a forward costs, the state behind it, and its tokens."""

    report: CostReport
    state_bytes: int | None
    tokens: int | None


@checking_arguments()
def measure(model: nn.Module, *inputs: Any, **options: Any) -> Measured:
    """``count``, ``state_bytes`` and ``tokens`` of one forward."""
    kept = list(_outermost(model))
    with _seeing(kept) as seen:
        report = count(model, *inputs, **options)
    return Measured(report, None if _stateless(kept) else _bytes_behind(model, seen), _common(seen))


@contextmanager
def _seeing(modules: list[nn.Module]) -> Iterator[dict[nn.Module, torch.Size]]:
    """Shape of the first input of each of these modules in the last forward."""
    seen: dict[nn.Module, torch.Size] = {}
    hooks = [m.register_forward_pre_hook(lambda m, args: seen.update({m: args[0].shape})) for m in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _stateless(modules: list[nn.Module]) -> bool:
    return not modules or any(isinstance(m, Mixer) and m.traits.mixes and not m.traits.recurrent for m in modules)


def _bytes_behind(model: nn.Module, seen: dict[nn.Module, torch.Size]) -> int:
    with evaluating(model), torch.no_grad():
        return sum(_state_of(module, shape[1]) for module, shape in seen.items())


def _common(seen: dict[nn.Module, torch.Size]) -> int | None:
    counts = {shape[0] * shape[1] for module, shape in seen.items() if isinstance(module, Mixer)}
    return counts.pop() if len(counts) == 1 else None


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    """Mixers, and short convolutions that belong to none."""
    if isinstance(module, Mixer | ShortConv):
        yield module
    else:
        for child in module.children():
            yield from _outermost(child)


def _state_of(module: nn.Module, length: int) -> int:
    if isinstance(module, ShortConv):
        return (module.size - 1) * module.weight.shape[0] * module.weight.element_size()
    assert isinstance(module, Mixer)
    if not module.traits.mixes:
        return 0
    like = next(module.parameters(), torch.zeros(0))
    _, state = module.prefill(like.new_zeros(1, length, module.dim))
    return sum(leaf.numel() * leaf.element_size() for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor))


@contextmanager
def frozen(model: nn.Module, but: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """No parameter but these takes a gradient, each as before afterwards.

    FLOP counters hook on to what modules return; a view of a parameter there (a learned matrix) claims to have a
    gradient even where gradients are off, and fails.
    """
    spared = {id(p) for p in but}
    taking = [p for p in model.parameters() if p.requires_grad and id(p) not in spared]
    try:
        for p in taking:
            p.requires_grad_(False)
        yield
    finally:
        for p in taking:
            p.requires_grad_(True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for the whole model, each module's own mode afterwards.

    PyTorch's fused encoder layer is off in here: in eval mode it never calls an attention module that was replaced.
    """
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model.eval()
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training


def fft_operations(length: int, transforms: int = 1, *, real: bool = False) -> int:
    """Real operations of ``transforms`` FFTs of ``length`` points: ``5 N log2 N`` each, half of it for real data."""
    return round((2.5 if real else 5.0) * transforms * length * math.log2(length)) if length > 1 else 0


class _Unknown(TorchDispatchMode):
    """Notes operators that reach the backend without a formula although they hide real work."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        known = packet in _FORMULAS or packet in flop_registry
        if not known and (func.namespace not in ("aten", "prim", "prims") or packet in _OPAQUE):
            self.names.add(str(packet))
        return func(*args, **(kwargs or {}))


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    """Give the formula the tensors, not only their shapes."""
    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


def _fft(real: bool, signal: str) -> Callable[..., int]:
    @_raw
    def formula(x: Tensor, dims: list[int], *args: Any, out_val: Any = None, **kwargs: Any) -> int:
        shape = (x if signal == "input" else out_val).shape
        length = math.prod(shape[d] for d in dims)
        return fft_operations(length, math.prod(shape) // length, real=real) if length else 0

    return formula


def _product(first: int) -> Callable[..., int]:
    """``(..., n, k) @ (..., k, m)``, the two factors at positions ``first`` and ``first + 1``."""

    @_raw
    def formula(*args: Any, **kwargs: Any) -> int:
        left, right = args[first : first + 2]
        columns = right.shape[-1] if right.dim() > 1 else 1
        return 2 * left.numel() * columns * (4 if left.is_complex() else 1)

    return formula


@_raw
def _sdpa(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _pool(axes: int) -> Callable[..., int]:
    @_raw
    def formula(x: Tensor, kernel: list[int], *args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return 2 * out_val.numel() * math.prod(kernel if len(kernel) == axes else kernel * axes)

    return formula


@_raw
def _adaptive_pool(x: Tensor, *args: Any, **kwargs: Any) -> int:
    return 2 * x.numel()


@_raw
def _mkldnn_rnn(x: Tensor, input_weight: Tensor, hidden_weight: Tensor, *args: Any, **kwargs: Any) -> int:
    return 2 * x.shape[0] * x.shape[1] * (input_weight.numel() + hidden_weight.numel())  # x (T, B, D)


@_raw
def _distances(x: Tensor, y: Tensor, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    return 2 * out_val.numel() * x.shape[-1]


_FORMULAS: dict[Any, Callable[..., int]] = {
    aten._fft_r2c: _fft(True, "input"),
    aten._fft_c2r: _fft(True, "output"),
    aten._fft_c2c: _fft(False, "input"),
    aten.mm: _product(0),
    aten.bmm: _product(0),
    aten.mv: _product(0),
    aten.dot: _product(0),
    aten.vdot: _product(0),
    aten.addmm: _product(1),
    aten.baddbmm: _product(1),
    aten.addmv: _product(1),
    aten._scaled_dot_product_flash_attention_for_cpu: _sdpa,
    aten.avg_pool2d: _pool(2),
    aten.avg_pool3d: _pool(3),
    aten._adaptive_avg_pool2d: _adaptive_pool,
    aten._adaptive_avg_pool3d: _adaptive_pool,
    aten._cdist_forward: _distances,
    aten.mkldnn_rnn_layer: _mkldnn_rnn,
}
_FFTS = (aten._fft_r2c, aten._fft_c2r, aten._fft_c2c)
_OPAQUE = {
    operator
    for name in ("_transformer_encoder_layer_fwd", "_native_multi_head_attention", "_cudnn_rnn",
                 "_thnn_fused_lstm_cell", "_trilinear", "addr")
    if (operator := getattr(aten, name, None)) is not None
}  # fmt: skip
