"""The laws of state: nothing moves while looking, and what is computed again is the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from matmix.mixers.base import Mixer
from matmix.ops.seed import fork_seed
from matmix.testing.cases import MixerCase
from matmix.testing.compare import close, same
from matmix.testing.mixer_laws import law
from matmix.training import after_step, auxiliary_losses, having


def state(mixer: nn.Module, *, norms: bool = False, hidden: bool = True) -> dict[str, Tensor]:
    """Copies of the tensors that the modules hold: those of batch norms, and what no ``state_dict`` has, if asked."""
    found: dict[str, Tensor] = {}
    for path, module in mixer.named_modules():
        if norms or not isinstance(module, _BatchNorm):
            held = {**module._parameters, **module._buffers, **module.__dict__}
            names = held if hidden else module.state_dict(keep_vars=True)
            tensors = {name: held[name] for name in names if torch.is_tensor(held.get(name))}
            found |= {f"{path}.{name}".lstrip("."): value.detach().clone() for name, value in tensors.items()}
    return found


def unmoved(mixer: nn.Module, before: dict[str, Tensor], what: str) -> None:
    """Assert that every tensor of ``before`` is what it was."""
    now = state(mixer, norms=True)
    for name, value in before.items():
        same(now[name], value, f"{name} after {what}")


@law
def looking(case: MixerCase) -> None:
    """In training mode too, ``matrix(x)`` moves no state, and again is the same; nor does a forward without gradients,
    or one with them before the step is done. Batch norms' statistics are PyTorch's own: a forward moves them."""
    if case.length == 1:
        return  # a batch norm has no variance then
    mixer, x = case.build().train(), case.tokens()
    before, shown = state(mixer, norms=True), []
    for _ in range(2):
        with fork_seed(0, "dropout"):
            shown.append(mixer.matrix(x).to_dense())
    unmoved(mixer, before, "matrix(x)")
    same(shown[1], shown[0], "matrix(x) again")
    with torch.no_grad():
        before = state(mixer)
        mixer(x)
    unmoved(mixer, before, "a forward without gradients")
    before = state(mixer, hidden=False)
    _pass(mixer, x, mixer)
    unmoved(mixer, before, "forward and backward")


@law
def recomputed(case: MixerCase) -> None:
    """``torch.utils.checkpoint``, of both kinds, changes no output, no gradient and no state after the step; two
    parts of a batch move the state as the whole does."""
    if case.length == 1:
        return
    fresh, x = case.build().train(), case.tokens()
    losses, plain = bool(having(fresh, "auxiliary_loss")), fresh
    for reentrant in (False, True):
        own = losses and not reentrant  # that kind runs the forward without gradients: a loss of its own has none
        if reentrant is False or losses:
            plain = copy.deepcopy(fresh)
            expected = _pass(plain, x, plain, own=own)
            after_step(plain)
        mixer, what = copy.deepcopy(fresh), f"checkpoint(use_reentrant={reentrant})"
        got = _pass(mixer, x, partial(checkpoint, mixer, use_reentrant=reentrant), own=own)
        for name, value in got.items():
            close(value, expected[name], f"{what}: {name}")
        after_step(mixer)
        _agree(mixer, plain, what)
    if having(fresh, "after_step") and case.batch > 1:
        for part in (x[:1], x[1:]):
            _pass(fresh, part, fresh)
        after_step(fresh)
        _agree(fresh, plain, "two parts of the batch")


def _pass(mixer: Mixer, x: Tensor, run: Callable[[Tensor], Tensor], *, own: bool = False) -> dict[str, Tensor]:
    """Outputs and gradients of one forward and backward; with the mixer's own losses, where wanted."""
    mixer.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    with fork_seed(0, "dropout"), auxiliary_losses(mixer) as auxiliary:
        out = run(x)
        loss = (out * torch.linspace(-1, 1, out.numel()).to(out).view_as(out)).sum()
        # Such losses weigh little; here as much as the outputs.
        (loss + 1e3 * auxiliary() if own else loss).backward()
    assert x.grad is not None
    grads = {name: p.grad.clone() for name, p in mixer.named_parameters() if p.grad is not None}
    return {"output": out.detach(), "gradient of the tokens": x.grad, **grads}


def _agree(mixer: Mixer, plain: Mixer, what: str) -> None:
    expected = state(plain)
    for name, value in state(mixer).items():
        close(value.double(), expected[name].double(), f"{what}: {name} after the step")
