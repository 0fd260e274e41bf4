"""The laws of padding and prompts: what stands at masked positions is not read, in no number, gradient or precision;
a recurrent mixer reads a sequence in any parts, padded or not."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from matmix.mixers.base import Mixer
from matmix.ops.vector_quantizer import VectorQuantizer
from matmix.testing.cases import MixerCase
from matmix.testing.compare import close, same
from matmix.testing.mixer_laws import garbage, law, slow_law, some_mask
from matmix.testing.run_laws import _near
from matmix.testing.trait_laws import lengths, padded


def _results(mixer: Mixer, x: Tensor, mask: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Outputs, and the gradients of tokens and parameters."""
    mixer.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    out = mixer(x, mask=mask)
    (out * weight).sum().backward()
    assert x.grad is not None
    grads = {f"the gradient of {name}": p.grad for name, p in mixer.named_parameters() if p.grad is not None}
    return {"forward": out.detach(), "the gradient of the tokens": x.grad} | grads


@law
def padding_is_replaced(case: MixerCase) -> None:
    """NaN, inf and 1e30 at masked positions leave all as zeros there do: outputs, matrix, the gradients of tokens (0 at
    masked ones) and of parameters; the outputs under autocast to bfloat16 too."""
    mixer = case.build(torch.float32)
    if mixer.traits.mask is None:
        return
    x, weight, mask = case.tokens(torch.float32), case.tokens(torch.float32, name="weight"), some_mask(case)
    clean, odd = x.masked_fill(~mask.unsqueeze(-1), 0), garbage(x, mask)
    close(mixer.matrix(odd, mask=mask).to_dense(), mixer.matrix(clean, mask=mask).to_dense(), "the matrix")
    expected, got = (_results(mixer, tokens, mask, weight) for tokens in (clean, odd))
    for name, value in expected.items():
        close(got[name], value, name)
    for name in ("forward", "the gradient of the tokens"):
        same(got[name][~mask], torch.zeros_like(x[~mask]), f"{name} at masked positions")
    with torch.no_grad(), torch.autocast(x.device.type, torch.bfloat16):
        close(mixer(odd, mask=mask), mixer(clean, mask=mask), "forward, autocast to bfloat16")


@slow_law
def padding_in_half(case: MixerCase) -> None:
    """Tokens that see none, behind padding and in a sample that is all padding, are finite and have finite gradients
    under autocast to bfloat16 and float16, and with weights in them."""
    if case.build().traits.mask is None:
        return
    mask = torch.ones(case.batch, case.length, dtype=torch.bool)
    mask[0], mask[-1, : case.length // 2] = False, False  # in a batch of one: half
    mask[-1, -1] = True
    for dtype, cast in itertools.product((torch.bfloat16, torch.float16), (True, False)):
        mixer, x = case.build(torch.float32 if cast else dtype), case.tokens(torch.float32 if cast else dtype)
        x = x.requires_grad_()
        with torch.autocast(x.device.type, dtype, enabled=cast):
            out = mixer(x, mask=mask.to(x.device))
        out.float().square().sum().backward()
        what = f"{'autocast to ' if cast else ''}{str(dtype).removeprefix('torch.')}"
        assert bool(torch.isfinite(out).all()), f"{what}: an output is not finite"
        for owner, grad in (("the tokens", x.grad), *((n, p.grad) for n, p in mixer.named_parameters())):
            assert grad is None or bool(torch.isfinite(grad).all()), f"{what}: the gradient of {owner} is not finite"


def _fold(mixer: Mixer, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """``step`` over all tokens: the outputs ``(B, L, D)`` and the last state."""
    outputs = []
    for token in x.unbind(1):
        out, state = mixer.step(token, state)
        outputs.append(out)
    return torch.stack(outputs, 1), state


def _refuses(call: Callable[[], object], *words: str) -> None:
    try:
        call()
    except ValueError as error:
        assert any(word in str(error) for word in words), f"the error does not say {words}: {error}"
        return
    raise AssertionError(f"no ValueError that says {words}")


@law
def nothing_to_read(case: MixerCase) -> None:
    """A sequence without tokens is a ValueError that says so, in every way in."""
    mixer, x = case.build(), case.tokens()[:, :0]
    for call in (mixer, mixer.matrix, *([mixer.prefill] if mixer.traits.recurrent else [])):
        _refuses(lambda call=call: call(x), "L must be at least 1")  # type: ignore[misc]


@law
def prompts(case: MixerCase) -> None:
    """Recurrent: ``prefill`` goes on from the state of another ``prefill``, or of steps, as if all tokens had come in
    one piece; a state of another batch is a ValueError. Gradients reach the given state, and what it was made of, as
    they do through steps (but for the straight-through gradient of quantised keys, which steps do not have)."""
    if not case.build().traits.recurrent:
        return
    case = case.on((case.length + 3,))
    mixer, x, half = case.build(), case.tokens(), case.length // 2
    expected = mixer(x)
    for size in sorted({1, case.length - 2}):
        first, state = mixer.prefill(x[:, :size])
        second, state = mixer.prefill(x[:, size:-1], state=state)
        last, _ = mixer.step(x[:, -1], state)
        close(torch.cat((first, second, last.unsqueeze(1)), 1), expected, f"prefill of {size} tokens, then of the rest")
    _, state = _fold(mixer, x[:, :half], mixer.init_state(case.batch))
    close(mixer.prefill(x[:, half:], state=state)[0], expected[:, half:], "prefill after steps", scale=expected)
    other = mixer.init_state(case.batch + 1)
    _refuses(lambda: mixer.prefill(x, state=other), "state")
    _refuses(lambda: mixer.step(x[:, 0], other), "state")

    if any(isinstance(part, VectorQuantizer) for part in mixer.modules()):
        return  # the straight-through gradient of keys is that of a whole sequence; steps have none
    if not mixer.traits.mixes:
        return  # no gradient goes through a state that holds nothing
    tokens, weight = x.detach().requires_grad_(), case.tokens(name="weight")
    found = []
    for run in (lambda x, state: mixer.prefill(x, state=state), lambda x, state: _fold(mixer, x, state)):
        _, state = mixer.prefill(tokens[:, :half])
        leaves = [s for s in pytree.tree_leaves(state) if s.is_floating_point() and s.requires_grad]
        loss = (run(x[:, half:], state)[0] * weight[:, half:]).sum()
        found.append(torch.autograd.grad(loss, (tokens, *leaves), allow_unused=True, materialize_grads=True))
    largest = max(float(part.abs().max()) for part in found[1] if part.numel())
    for index, (got, wanted) in enumerate(zip(*found, strict=True)):
        name = f"part {index} of the state" if index else "the tokens before"
        close(got, wanted, f"prefill from a state: the gradient of {name}", scale=largest)


@law
def padded_prompts(case: MixerCase) -> None:
    """Recurrent: prompts of unequal lengths, padded on the left, on the right or on both sides, from the start or from
    a state, leave the outputs and the state of each alone; one without any token leaves its state as it was."""
    if not case.build().traits.recurrent:
        return
    case = case.on((case.length + 5,), batch=4)
    mixer, x = case.build(), case.tokens()
    assert mixer.traits.mask == "trim", "a recurrent mixer takes padding"
    start, prompt, rest = x.split((2, case.length - 4, 2), 1)
    _, before = mixer.prefill(start)
    sizes = lengths(prompt.shape[1], 4)
    left = padded(prompt, sizes, "left")
    right, none = padded(prompt, sizes, "right"), padded(prompt, [*sizes[:3], 0], "right")
    heads = {"the start": (None, start[:, :0]), "a state": (before, start)}
    runs = (
        ("left", left, "the start"),
        ("right", right, "the start"),
        ("either side", left.roll(-1, 1), "a state"),  # the longest is whole, and stays so
        ("right, one wholly", none, "a state"),
    )
    # Sample by sample without padding, once for each length.
    alone: dict[tuple[str, int, tuple[bool, ...]], Tensor] = {}
    for side, mask, origin in runs:
        state, head = heads[origin]
        out, after = mixer.prefill(garbage(prompt, mask), mask=mask, state=state)
        more, _ = mixer.prefill(rest, state=after)
        what = f"padded on the {side}, from {origin}"
        same(out[~mask], torch.zeros_like(out[~mask]), f"prefill {what}: outputs at masked tokens")
        for index, real in enumerate(mask):
            key = (origin, index, tuple(real.tolist()))
            if key not in alone:
                alone[key] = mixer(torch.cat((head[index], prompt[index, real], rest[index])).unsqueeze(0))[0]
            count, whole = int(real.sum()), alone[key][head.shape[1] :]
            close(out[index, real], whole[:count], f"prefill of {count} tokens {what}", scale=alone[key])
            close(more[index], whole[count:], f"what follows on {count} tokens {what}", scale=alone[key])


@law
def prompts_in_half(case: MixerCase) -> None:
    """Recurrent: ``prefill`` and ``step`` keep the dtype of the tokens and stay as near to float64 as ``forward`` does,
    under autocast to bfloat16 and float16 and with weights in them, also for a prompt that goes on from a state."""
    if not case.build().traits.recurrent:
        return
    case = case.on((min(max(case.length, 4), 6),), batch=1)
    exact, x = case.build(), case.tokens(torch.float32)
    single = case.build(torch.float32)
    expected, half = copy.deepcopy(single).double()(x.double()), case.length // 2
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        rounded, tokens = copy.deepcopy(exact).to(dtype), x.to(dtype)
        reference = copy.deepcopy(rounded).double()(tokens.double())
        spread = float((reference - expected).detach().norm())
        for mixer, given, wanted, cast in ((single, x, expected, True), (rounded, tokens, reference, False)):
            what = f"autocast to {name}" if cast else name
            with torch.autocast(x.device.type, dtype, enabled=cast):
                first, state = mixer.prefill(given[:, :half])
                second, state = mixer.prefill(given[:, half:-1], state=state)
                last, _ = mixer.step(given[:, -1], state)
                out, folded = (
                    torch.cat((first, second, last.unsqueeze(1)), 1),
                    _fold(mixer, given, mixer.init_state(case.batch))[0],
                )
            for part, result in (("prefill", out), ("steps", folded)):
                assert result.dtype == given.dtype, f"{what}: {part} of {given.dtype} gives {result.dtype}"
                _near(result, wanted, spread, dtype, f"{what}: {part}")


@law
def packed(case: MixerCase) -> None:
    """Packed: sequences in a row have the outputs, and with the others the gradients, that each has alone, padding
    among them too; the matrix is zero between them, and float32's gradients are finite. Otherwise ``segments`` is a
    ValueError."""
    mixer = case.build()
    if not mixer.traits.packed or 1 not in mixer.traits.dims:
        assert not mixer.traits.packed, "traits.packed without sequences"
        numbers = torch.zeros(case.tokens().shape[:2], dtype=torch.int64)
        _refuses(lambda: mixer(case.tokens(), segments=numbers), "segments")
        return
    case = case.on((case.length + 4,))
    mixer, x, weight = case.build(), case.tokens(), case.tokens(name="weight")
    place = torch.arange(case.length).expand(case.batch, -1)
    # Two tokens, one, and the rest under the number of the first; in the other samples one sequence more.
    segments = torch.stack([7 * (row == 2) + (row > 3 + index) * (index > 0) for index, row in enumerate(place)])
    masks = [None] if mixer.traits.mask is None else [None, some_mask(case)]
    for mask in masks:
        what = "" if mask is None else " with a mask"

        def alone(x: Tensor, mask: Tensor | None = mask) -> Tensor:
            rows = []
            for index, row in enumerate(segments):
                cuts = [0, *(torch.nonzero(row[1:] != row[:-1]).flatten() + 1).tolist(), case.length]
                for start, stop in itertools.pairwise(cuts):
                    real = None if mask is None else mask[index : index + 1, start:stop]
                    rows.append(mixer(x[index : index + 1, start:stop], mask=real)[0])
            return torch.cat(rows).view(x.shape)

        found = []
        for run in (lambda x, mask=mask: mixer(x, mask=mask, segments=segments), alone):
            tokens = x.detach().requires_grad_()
            mixer.zero_grad(set_to_none=True)
            out = run(tokens)
            (out * weight).sum().backward()
            assert tokens.grad is not None
            grads = {f"the gradient of {n}": p.grad for n, p in mixer.named_parameters() if p.grad is not None}
            found.append({"forward": out.detach(), "the gradient of the tokens": tokens.grad} | grads)
        for name, value in found[1].items():
            close(found[0][name], value, f"packed{what}: {name}")
    number = (segments[:, 1:] != segments[:, :-1]).cumsum(1)
    number = torch.cat((torch.zeros_like(number[:, :1]), number), 1)
    apart = (number.unsqueeze(-1) != number.unsqueeze(-2)).unsqueeze(1)
    dense = mixer.matrix(x, segments=segments).to_dense()
    if dense.shape[2:] == apart.shape[2:]:
        leak = float(dense.detach().abs().masked_fill(~apart, 0).max())
        assert leak == 0, f"the matrix holds {leak:.3g} between two sequences"
    single, tokens = case.build(torch.float32), case.tokens(torch.float32).requires_grad_()
    single(tokens, segments=segments).sum().backward()
    for name, grad in (("the tokens", tokens.grad), *((n, p.grad) for n, p in single.named_parameters())):
        assert grad is None or bool(torch.isfinite(grad).all()), (
            f"packed, float32: the gradient of {name} is not finite"
        )
