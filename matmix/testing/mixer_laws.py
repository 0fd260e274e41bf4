"""The laws of every mixer, whatever it promises; each a function of a :class:`MixerCase`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from matmix.mixers.base import Mixer, Projected, drop_padding
from matmix.testing.cases import MixerCase, dense_up_to
from matmix.testing.compare import close, same

MixerLaw = Callable[[MixerCase], None]
MIXER_LAWS: dict[str, MixerLaw] = {}
"""name -> law; the quick ones."""
SLOW_MIXER_LAWS: dict[str, MixerLaw] = {}
"""name -> law; those that take seconds or more a mixer."""
TRACED: set[str] = set()
"""Names of the laws that take a second a mixer, as tracing does, and whose result does not hang on the numbers: they
run at one size, all its dimensions distinct, because Dynamo takes equal ones for the same."""


def law(check: MixerLaw) -> MixerLaw:
    """Enrol a law under its own name."""
    MIXER_LAWS[check.__name__] = check
    return check


def traced_law(check: MixerLaw) -> MixerLaw:
    """Enrol a law that runs at one size."""
    TRACED.add(check.__name__)
    return law(check)


def slow_law(check: MixerLaw) -> MixerLaw:
    """Enrol a slow law under its own name; it runs at one size."""
    TRACED.add(check.__name__)
    SLOW_MIXER_LAWS[check.__name__] = check
    return check


def projected(mixer: Mixer, x: Tensor, mask: Tensor | None = None) -> Projected:
    """What the mixer's forward works with."""
    return mixer.project(drop_padding(x, mask), mixer._context(x, None, mask))


def some_mask(case: MixerCase) -> Tensor:
    """A mask with holes; every sample keeps a token, and the last sample's are all real."""
    mask = case.tokens(name="mask")[..., 0] > -0.5
    mask[:, -1] = True
    mask[-1:] = True
    return mask


def garbage(x: Tensor, mask: Tensor) -> Tensor:
    """The tokens with what may stand in memory that nobody wrote at masked positions: NaN, inf, -inf, 1e30 in turn."""
    odd = x.new_tensor([math.nan, math.inf, -math.inf, 1e30])
    place = torch.arange(x.shape[1] * x.shape[2], device=x.device) % len(odd)
    return torch.where(mask.unsqueeze(-1), x, odd[place].view(x.shape[1:]))


@law
def product(case: MixerCase) -> None:
    """``forward`` is ``merge(matrix.to_dense() @ values)``, and ``matrix`` returns that matrix."""
    mixer, x = case.build(), case.tokens()
    masks = [None] if mixer.traits.mask is None else [None, some_mask(case)]
    for mask in masks:
        what = "forward" if mask is None else "forward with a mask"
        matrix, values, rest = projected(mixer, x, mask)
        dense = matrix.to_dense()
        rows = tuple(dense.shape)[2]
        # A mixer that mixes channels too has tokens times the channels of a block as its axis.
        assert rows and rows % case.length == 0, f"{what}: the matrix has {rows} rows for {case.length} tokens"
        expected = mixer.merge(dense @ values, rest)
        if mask is not None:
            expected = expected.masked_fill(~mask.unsqueeze(-1), 0)
        with dense_up_to(0):
            close(mixer(x, mask=mask), expected, f"{what} (fast path)")
        close(mixer(x, mask=mask), expected, what)
        close(mixer.matrix(x, mask=mask).to_dense(), dense, f"{what}: matrix(x)")


@law
def keeps(case: MixerCase) -> None:
    """Shape, dtype and device are kept; tokens, weights and buffers are left as they were; the same again gives the
    same; the memory layout of the tokens does not matter."""
    for dtype in (torch.float64, torch.float32):
        mixer, x = case.build(dtype), case.tokens(dtype)
        before, weights = x.clone(), copy.deepcopy(mixer.state_dict())
        out = mixer(x)
        assert out.shape == x.shape, f"tokens {tuple(x.shape)} become {tuple(out.shape)}"
        assert out.dtype == dtype, f"{dtype} tokens become {out.dtype}"
        assert out.device == x.device, f"tokens on {x.device} go to {out.device}"
        same(x, before, "the tokens after forward")
        kept = out.clone()
        mixer(case.tokens(dtype, name="others"))
        same(out, kept, "the outputs after another forward")
        for name, value in mixer.state_dict().items():
            same(value, weights[name], f"{name} after forward")
        same(mixer(x), out, "forward again")
        turned = x.mT.contiguous().mT
        close(mixer(turned), out, "forward of tokens laid out by channel")


@law
def samples(case: MixerCase) -> None:
    """The outputs of one sample depend on that sample alone."""
    case = case.on(case.grid, batch=3)
    mixer, x = case.build(), case.tokens()
    out = mixer(x)
    for index in range(3):
        close(mixer(x[index : index + 1]), out[index : index + 1], f"sample {index} alone", scale=out)


@law
def gradients(case: MixerCase) -> None:
    """Every parameter and the tokens get a finite, non-zero gradient, of their own dtype and shape."""
    # A few tokens may all choose one code of a quantiser: then no score matters.
    if case.length < (16 if case.build().traits.straight_through else 4):
        return
    mixer = case.build().train()
    x = case.tokens().requires_grad_()
    out = mixer(x)
    if not any(True for _ in mixer.parameters()) and not mixer.traits.mixes and not bool(out.any()):
        return  # the control that gives zeros, and says that it does not mix
    (out * case.tokens(name="weight")).sum().backward()
    found = {"the tokens": x.grad} | {name: p.grad for name, p in mixer.named_parameters() if p.requires_grad}
    sizes = {name: float(g.abs().max()) for name, g in found.items() if g is not None}
    largest = max(sizes.values(), default=0.0)
    for name, grad in found.items():
        assert grad is not None, f"{name} gets no gradient"
        assert bool(torch.isfinite(grad).all()), f"the gradient of {name} is not finite"
        assert sizes[name] > 1e-12 * largest, f"the gradient of {name} is zero ({sizes[name]:.3g} of {largest:.3g})"


@law
def state_dict(case: MixerCase) -> None:
    """Weights go through ``state_dict`` into a mixer that was drawn differently; a deep copy is independent."""
    mixer, x = case.build(), case.tokens()
    out = mixer(x)
    fresh = case.build(seed=case.seed + 1)
    fresh.load_state_dict(mixer.state_dict(), strict=True)
    same(fresh(x), out, "a mixer with the same state_dict")
    twin = copy.deepcopy(mixer)
    same(twin(x), out, "a deep copy")
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    same(mixer(x), out, "the mixer after its deep copy changed")


@law
def small(case: MixerCase) -> None:
    """One token, and a batch of 0, forward and backward."""
    one = case.on((1,) * len(case.grid))
    empty = case.on(case.grid, batch=0)
    for size, what in ((one, "one token"), (empty, "an empty batch")):
        mixer, x = size.build(), size.tokens().requires_grad_()
        out = mixer(x)
        assert out.shape == x.shape, f"{what}: {tuple(x.shape)} becomes {tuple(out.shape)}"
        assert bool(torch.isfinite(out).all()), f"{what}: an output is not finite"
        out.sum().backward()
        assert x.grad is not None and bool(torch.isfinite(x.grad).all()), f"{what}: a gradient is not finite"
        matrix, values, rest = projected(mixer, x)
        close(out, mixer.merge(matrix.to_dense() @ values, rest), what)
