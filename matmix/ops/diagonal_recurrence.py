"""The recurrence of a diagonal state space, token by token, with a backward pass that recomputes it.

    S_i = exp(a_i) S_{i-1} + B_i w_i,   y_i = sum_n C_i[n] S_i[n]

Nothing here adds arithmetic to the recurrence: a block of tokens is expanded into buffers that stay in cache, the
states run through it in place, and one product reads them all. The columns stand last, so that every step is a few
long runs. Of the states only the one before each block is kept; the backward pass computes a block's states again and
runs the adjoint through them from the end. The memory of it is that of the tokens, not N times as much.

Legend: L tokens, P samples and groups of heads, N state, R heads of a group, W width; tokens stand first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from matmix.ops.function import Function, call
from matmix.ops.precision import full_precision

_CACHE = 2**19  # numbers of state that a block should have
_BLOCK = (8, 64)  # its tokens, at least and at most


def run_tokens(
    written: Tensor,
    inputs: Tensor,
    outputs: Tensor,
    clock: Tensor,
    rate: Tensor | None,
    initial: Tensor,
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence above.

    Args:
        written: w, ``(L, P, R, W)``.
        inputs: B, ``(L, P, N)``.
        outputs: C, ``(L, P, N)``.
        clock: ``(L, P, R)``, with ``a = clock rate``; or a itself, ``(L, P, N, R)``, without a rate.
        rate: ``(P, N, R)``.
        initial: the state before the first token, ``(P, N, R, W)``.
        block: tokens that are expanded together; the result does not depend on it.

    Returns:
        y ``(L, P, R, W)`` and the last state ``(P, N, R, W)``.
    """
    length = written.shape[0]
    if block is None:
        low, high = _BLOCK
        block = min(high, max(low, _CACHE // max(1, initial.numel())))
    mixed, last, _ = call(_Recurrence, written, inputs, outputs, clock, rate, initial, max(1, min(block, length)))
    return mixed, last


class _Recurrence(Function):
    """y, the last state, and the states before each block."""

    @staticmethod
    def forward(
        written: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        clock: Tensor,
        rate: Tensor | None,
        initial: Tensor,
        block: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        length = written.shape[0]
        mixed = torch.empty_like(written, memory_format=torch.contiguous_format)
        borders = initial.new_empty(-(-length // block), *initial.shape)
        state = initial.clone(memory_format=torch.contiguous_format)
        decay = initial.new_empty(block, *initial.shape[:-1])
        states = initial.new_empty(block, *initial.shape)
        for border, start in zip(borders.unbind(0), range(0, length, block), strict=True):
            border.copy_(state)
            part = slice(start, min(start + block, length))
            own, _ = _expand(written[part], inputs[part], clock[part], rate, state, decay, states)
            read = outputs[part].unsqueeze(2) @ own.flatten(3)
            mixed[part] = read.view(mixed[part].shape)
            state.copy_(own[-1])
        return mixed, state, borders

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.block = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*tensors, output[2])
        ctx.set_materialize_grads(False)  # the states before each block would get zeros of their size

    @staticmethod
    def backward(ctx: Any, d_mixed: Tensor | None, d_last: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        *tensors, borders = ctx.saved_tensors  # read once: under checkpointing a second time is an error
        d_mixed = torch.zeros_like(tensors[0]) if d_mixed is None else d_mixed
        d_last = torch.zeros_like(tensors[5]) if d_last is None else d_last
        if torch.is_grad_enabled():  # a derivative of the derivative is wanted
            wanted = [t for t in tensors if t is not None and t.requires_grad]
            plain = _plain(*tensors)
            found = torch.autograd.grad(plain, wanted, (d_mixed, d_last), create_graph=True, materialize_grads=True)
            grads = iter(found)
            return (*(None if t is None or not t.requires_grad else next(grads) for t in tensors), None)
        with full_precision(d_mixed.device):
            return (*_adjoint(tensors, borders, d_mixed.contiguous(), d_last, ctx.block), None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        *tensors, block = args
        size, wide = info.batch_size, list[Tensor | None]()
        at = (1, 1, 1, 1, 0, 0)  # where P stands: samples of another kind
        for tensor, dim, place in zip(tensors, in_dims, at, strict=False):
            if tensor is None:
                wide.append(None)
                continue
            if dim is None:
                tensor, dim = tensor.expand(size, *tensor.shape), 0
            wide.append(tensor.movedim(dim, place).flatten(place, place + 1))
        mixed, last, borders = call(_Recurrence, *wide, block)
        split = (size, last.shape[0] // size)
        return (mixed.unflatten(1, split), last.unflatten(0, split), borders.unflatten(1, split)), (1, 0, 1)


def _expand(
    written: Tensor, inputs: Tensor, clock: Tensor, rate: Tensor | None, state: Tensor, decay: Tensor, states: Tensor
) -> tuple[Tensor, Tensor]:
    """The states after each token of a block, and the decays, in the buffers given."""
    count = len(written)
    decay, states = decay[:count], states[:count]
    if rate is None:
        torch.exp(clock, out=decay)
    else:
        _spread(clock, rate, decay)
        decay.exp_()
    _spread(written.flatten(2), inputs.unsqueeze(-1), states.flatten(3))
    for factor, own in zip(decay.unsqueeze(-1).unbind(0), states.unbind(0), strict=True):
        state = own.addcmul_(factor, state)
    return states, decay


def _spread(columns: Tensor, rows: Tensor, out: Tensor) -> None:
    """``out[l, p, n, k] = columns[l, p, k] rows[p, n, k]``; rows may have an axis of tokens, and one column for all.

    Few columns are taken one at a time: with two of 16 states that is 2.6 times faster than so short an innermost axis.
    """
    states, count = out.shape[2:]
    if count == 1 or 4 * count > states:
        torch.mul(columns.unsqueeze(2), rows, out=out)
        return
    for k in range(count):
        torch.mul(columns[..., k, None], rows[..., min(k, rows.shape[-1] - 1)], out=out[..., k])


def _adjoint(
    tensors: tuple[Any, ...], borders: Tensor, d_mixed: Tensor, d_last: Tensor, block: int
) -> tuple[Tensor | None, ...]:
    """The gradients of the six tensors of ``run_tokens``."""
    written, inputs, outputs, clock, rate, initial = tensors
    length = written.shape[0]
    d_written, d_inputs, d_outputs, d_clock = (
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in (written, inputs, outputs, clock)
    )
    d_rate = None if rate is None else torch.zeros_like(rate, memory_format=torch.contiguous_format)
    decays = initial.new_empty(block, *initial.shape[:-1])
    buffer, d_buffer = (initial.new_empty(block, *initial.shape) for _ in range(2))
    carried = d_last  # exp(a_{i+1}) dS_{i+1}: what the tokens behind want of this state
    for border, start in reversed(list(zip(borders.unbind(0), range(0, length, block), strict=True))):
        part = slice(start, min(start + block, length))
        states, decay = _expand(written[part], inputs[part], clock[part], rate, border, decays, buffer)
        d_states = d_buffer[: len(states)]
        _spread(d_mixed[part].flatten(2), outputs[part].unsqueeze(-1), d_states.flatten(3))
        d_states[-1].add_(carried)
        wide = decay.unsqueeze(-1)
        for i in range(len(states) - 2, -1, -1):
            d_states[i].addcmul_(wide[i + 1], d_states[i + 1])
        carried = wide[0] * d_states[0]

        d_outputs[part] = _dots(states, d_mixed[part])
        d_inputs[part] = _dots(d_states, written[part])
        d_written[part] = (inputs[part].unsqueeze(2) @ d_states.flatten(3)).view(written[part].shape)

        # What is wanted of the exponents: dS_i exp(a_i) S_{i-1}.
        d_states.mul_(wide)
        d_states[1:].mul_(states[:-1])
        d_states[0].mul_(border)
        d_logs = d_states.squeeze(-1) if d_states.shape[-1] == 1 else d_states.sum(-1)
        own = d_clock[part]
        if rate is None or d_rate is None:
            own.copy_(d_logs)
            continue
        own.zero_()
        for n in range(rate.shape[1]):
            own.addcmul_(d_logs[:, :, n], rate[:, n])
        for entries, ticks in zip(d_logs.unbind(0), clock[part].unbind(0), strict=True):
            d_rate.addcmul_(entries, ticks.unsqueeze(1))
    return d_written, d_inputs, d_outputs, d_clock, d_rate, carried


def _dots(states: Tensor, columns: Tensor) -> Tensor:
    """``sum_k states[l, p, n, k] columns[l, p, k]``; rows times matrices are ten times as fast as columns."""
    return (columns.flatten(2).unsqueeze(2) @ states.flatten(3).mT).squeeze(2)


def _plain(
    written: Tensor, inputs: Tensor, outputs: Tensor, clock: Tensor, rate: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """``run_tokens`` in operations that can be differentiated any number of times."""
    logs = clock if rate is None else clock.unsqueeze(2) * rate
    mixed = []
    for w, b, c, a in zip(written, inputs, outputs, logs, strict=True):
        state = torch.addcmul(b[..., None, None] * w.unsqueeze(1), a.exp().unsqueeze(-1), state)
        mixed.append((c[..., None, None] * state).sum(1))
    return torch.stack(mixed), state
