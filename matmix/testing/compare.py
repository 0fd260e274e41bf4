"""What "equal" means in a law.

One policy for all laws: the largest absolute error is at most ``TOLERANCE[dtype] * scale``.

- ``dtype`` is that of the tensor under test: 1e-10 in float64, 1e-5 in float32, 8 eps in float16 and bfloat16.
- ``scale`` is the largest entry of ``|M| |V|`` for a product ``M V`` (the size that rounding is relative to, whatever
  cancels), and the largest entry of the expected tensor for anything else.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 8 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 8 * torch.finfo(torch.bfloat16).eps,
}


def close(
    actual: Tensor,
    expected: Tensor,
    what: str,
    *,
    scale: Tensor | float | None = None,
    tolerance: float | None = None,
) -> None:
    """Assert that two tensors agree in shape and, to the policy above, in value.

    Args:
        actual: the tensor under test; its dtype picks the tolerance.
        expected: the reference, in any dtype.
        what: names the comparison in the message.
        scale: a number, or a tensor whose largest entry counts; the largest entry of ``expected`` where absent.
        tolerance: instead of the one of the dtype.

    Raises:
        AssertionError: if they differ, with the largest error and where it stands.
    """
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if actual.numel() == 0:
        return
    limit = TOLERANCE[actual.dtype.to_real() if actual.is_complex() else actual.dtype]
    limit = limit if tolerance is None else tolerance
    got, wanted = _wide(actual), _wide(expected)
    assert bool(torch.isfinite(got).all()), f"{what}: {int((~torch.isfinite(got)).sum())} entries are not finite"
    if scale is None:
        scale = wanted
    size = float(scale.detach().abs().max()) if isinstance(scale, Tensor) else scale
    error = (got - wanted).abs()
    worst = float(error.max())
    if worst <= limit * size:
        return
    where = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    raise AssertionError(
        f"{what}: off by {worst:.3g} at {where} ({got[where].item():.6g}, expected {wanted[where].item():.6g}); "
        f"allowed is {limit:.1g} x {size:.3g}"
    )


def differ(first: Tensor, second: Tensor, what: str) -> None:
    """Assert that two tensors of one shape differ by more than rounding."""
    first, second = _wide(first), _wide(second)
    size = float(torch.maximum(first.abs(), second.abs()).max())
    assert float((first - second).abs().max()) > 1e-8 * size, what


def same(first: Tensor, second: Tensor, what: str) -> None:
    """Assert that two tensors are equal bit for bit."""
    assert first.shape == second.shape, f"{what}: {tuple(first.shape)} against {tuple(second.shape)}"
    assert torch.equal(first, second), f"{what}: differs by {float((_wide(first) - _wide(second)).abs().max()):.3g}"


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to(torch.complex128) if tensor.is_complex() else tensor.to(torch.float64)
