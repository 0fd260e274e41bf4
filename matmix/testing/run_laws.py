"""The laws of running a mixer: compilers, low precision, extreme numbers, long sequences."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from matmix.compiled import Compiled
from matmix.mixers.base import Mixer
from matmix.testing.cases import MixerCase
from matmix.testing.compare import TOLERANCE, close
from matmix.testing.mixer_laws import law, slow_law, traced_law


def _train(mixer: Mixer, x: Tensor, weight: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """The outputs and all gradients of one pass, through ``run`` (a compiled form of the mixer) where given."""
    mixer.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    out = (mixer if run is None else run)(x)
    (out * weight).sum().backward()
    assert x.grad is not None
    grads = {name: p.grad.clone() for name, p in mixer.named_parameters() if p.grad is not None}
    return {"forward": out.detach(), "gradient of the tokens": x.grad, **grads}


def _compiled(case: MixerCase, backend: str) -> None:
    mixer = case.build(torch.float32)
    x, weight = case.tokens(torch.float32), case.tokens(torch.float32, name="weight")
    expected = _train(mixer, x, weight)
    torch._dynamo.reset()  # graphs of other mixers would count towards the recompile limit
    try:
        run = torch.compile(mixer, fullgraph=True, backend=backend)
        got = _train(mixer, x, weight, run)
        for name, value in got.items():
            close(value, expected[name], f"compiled by {backend}: {name}", tolerance=1e-4)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"torch.compile(fullgraph=True): {str(error).strip()[:800]}") from error
    finally:
        torch._dynamo.reset()


@traced_law
def compiles(case: MixerCase) -> None:
    """``torch.compile(fullgraph=True)`` traces forward and backward as one graph each, with eager's results."""
    _compiled(case, "aot_eager")


@slow_law
def compiles_by_inductor(case: MixerCase) -> None:
    """The same with kernels that inductor writes."""
    _compiled(case, "inductor")


@slow_law
def compiles_lengths_by_inductor(case: MixerCase) -> None:
    """A mixer whose length is any trains at several lengths through one program that inductor writes, compiled as
    `Recipe.compile` does it, with eager's results."""
    mixer = case.build(torch.float32)
    if mixer.traits.length != "any" or len(case.grid) != 1:
        return
    torch._dynamo.reset()
    try:
        # The first batch is told, and of another length than any here: so all run with the length left open.
        first = [[case.batch, case.length + 1, case.dim]]
        run = Compiled(mixer, {f"{'train' if mixer.training else 'eval'} [3]": first})
        for size in (case, case.on((2 * case.length,))):
            x, weight = size.tokens(torch.float32), size.tokens(torch.float32, name="weight")
            expected = _train(mixer, x, weight)
            for name, value in _train(mixer, x, weight, run).items():
                close(value, expected[name], f"compiled, {size.length} tokens: {name}", tolerance=1e-4)
    finally:
        torch._dynamo.reset()


@slow_law
def compiles_steps(case: MixerCase) -> None:
    """A recurrent mixer's ``step`` is one graph too."""
    mixer = case.build(torch.float32)
    if not mixer.traits.recurrent:
        return
    x = case.tokens(torch.float32)
    torch._dynamo.reset()
    try:
        step, state = torch.compile(mixer.step, fullgraph=True, backend="aot_eager"), mixer.init_state(case.batch)
        outputs = []
        for token in x.unbind(1):
            out, state = step(token, state)
            outputs.append(out)
        close(torch.stack(outputs, 1), mixer(x), "compiled steps")
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"torch.compile(fullgraph=True) of step: {str(error).strip()[:800]}") from error
    finally:
        torch._dynamo.reset()


def _near(actual: Tensor, expected: Tensor, spread: float, dtype: torch.dtype, what: str) -> None:
    """In the Euclidean norm: within 8 eps of the size, plus four times what rounding the inputs alone does."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert bool(torch.isfinite(actual).all()), f"{what}: an output is not finite"
    error, size = float((actual - expected).norm()), float(expected.norm())
    allowed = TOLERANCE[dtype] * size + 4 * spread
    assert error <= allowed, f"{what}: off by {error:.3g} of {size:.3g} (norm), allowed is {allowed:.3g}"


@law
def precision(case: MixerCase) -> None:
    """float32 is within 1e-5 of float64 (largest error over largest output). ``.bfloat16()``, ``.half()`` and
    autocast to both keep the dtype, with finite gradients, and stay within 8 eps and four times the change that
    float64 shows for weights and tokens rounded to that dtype: a normalised difference may amplify rounding."""
    exact, x = case.build(), case.tokens(torch.float32)
    single = case.build(torch.float32)
    expected = copy.deepcopy(single).double()(x.double())
    close(single(x), expected, "float32 against float64")
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        half, tokens = copy.deepcopy(exact).to(dtype), x.to(dtype).requires_grad_()
        rounded = copy.deepcopy(half).double()(tokens.detach().double())
        spread = float((rounded - expected).detach().norm())
        with torch.autocast(x.device.type, dtype):
            out = single(x)
        assert out.dtype == torch.float32, f"autocast to {name}: float32 tokens become {out.dtype}"
        _near(out, expected, spread, dtype, f"autocast to {name}")
        out = half(tokens)
        assert out.dtype == dtype, f"{name} tokens become {out.dtype}"
        _near(out, rounded, spread, dtype, name)
        out.float().square().mean().backward()
        for owner, grad in (("the tokens", tokens.grad), *((n, p.grad) for n, p in half.named_parameters())):
            assert grad is None or bool(torch.isfinite(grad).all()), f"{name}: gradient of {owner} is not finite"


@law
def extremes(case: MixerCase) -> None:
    """Huge tokens, equal tokens and zeros, weights that are 0 or ten times as large (decays of 0 and 1, saturated
    gates): finite outputs, and for the tokens finite gradients."""
    x = case.tokens(torch.float32)
    inputs = {"tokens times 100": 100 * x, "equal tokens": x[:, :1].expand_as(x), "zeros": torch.zeros_like(x)}
    for what, tokens in inputs.items():
        mixer, tokens = case.build(torch.float32), tokens.detach().clone().requires_grad_()
        out = mixer(tokens)
        assert bool(torch.isfinite(out).all()), f"{what}: an output is not finite"
        out.mean().backward()
        for owner, grad in (("the tokens", tokens.grad), *((n, p.grad) for n, p in mixer.named_parameters())):
            assert grad is None or bool(torch.isfinite(grad).all()), f"{what}: the gradient of {owner} is not finite"
    for factor in (0.0, 10.0):
        mixer = case.build(torch.float32)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.mul_(factor)
            assert bool(torch.isfinite(mixer(x)).all()), f"weights times {factor:g}: an output is not finite"


@slow_law
def long(case: MixerCase) -> None:
    """4096 tokens in float32 (1024 where the length is fixed, as weights may grow with its square): finite outputs
    and gradients."""
    length = 4096 if case.build().traits.length == "any" else 1024
    there = case.on((length,) if len(case.grid) == 1 else (32, length // 32), batch=1)
    mixer, x = there.build(torch.float32), there.tokens(torch.float32).requires_grad_()
    out = mixer(x)
    assert bool(torch.isfinite(out).all()), "an output is not finite"
    out.mean().backward()
    for owner, grad in (("the tokens", x.grad), *((n, p.grad) for n, p in mixer.named_parameters())):
        assert grad is None or bool(torch.isfinite(grad).all()), f"the gradient of {owner} is not finite"
