"""What a training loop does for a model besides gradients. The trainer of ``matmix.experiments`` does both; a loop of
one's own does them like this::

    with matmix.auxiliary_losses(model) as auxiliary:
        output = model(x)
        (criterion(output, y) + auxiliary()).backward()
    optimizer.step()
    matmix.after_step(model)        # or once: optimizer.register_step_post_hook(lambda *_: matmix.after_step(model))

**State that training moves without a gradient** (the codebook of ``vq_attention``). A module that has some writes a
method ``after_step()``, to be called after each update of the weights, in every process. It moves the state by all
tokens since the last call whose forward had its backward pass: those of all accumulated parts, and of all processes
(their sums are added). A forward never moves it, nor does looking: ``matrix(x)``, ``record``, evaluation, a forward
without gradients, or the second forward of gradient checkpointing, of either kind.

**Losses of a module's own** (the commitment of the same mixer). A module that has one writes a method
``auxiliary_loss(*noted)``, which gives the weighted loss, a mean over the examples, from what a forward in training
mode appended to the list ``self.noted`` where that is not None. So parts of equal size have the mean of their losses,
and nothing is computed or kept for a loop that does not ask.

The running statistics of a batch norm are PyTorch's own affair, ours too: every forward in training mode moves them,
without gradients (``torch.optim.swa_utils.update_bn`` relies on it) and a second time under gradient checkpointing.
Only ``matrix(x)`` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from matmix.arguments import checking_arguments
from matmix.ranges import shown


def after_step(model: nn.Module) -> None:
    """Move the state of every module that has some, once the optimiser has moved the weights; in all processes."""
    if not isinstance(model, nn.Module):  # once a step, so nothing else is looked at
        raise ValueError(f"after_step: model must be a torch.nn.Module, got {shown(model)}")
    for module in having(model, "after_step"):
        module.after_step()  # type: ignore[operator]


@checking_arguments()
@contextmanager
def auxiliary_losses(model: nn.Module) -> Iterator[Callable[[], Tensor | float]]:
    """Inside, forwards in training mode note what their modules' own losses are made of.

    Yields:
        A function that gives the sum of the losses of the forwards since it was last called, 0.0 if there are none.
        The backward pass stands inside too: gradient checkpointing must find there what it found before.
    """
    modules = having(model, "auxiliary_loss")
    before = [module.noted for module in modules]
    lists: list[list[tuple[Tensor | None, ...]]] = [[] for _ in modules]

    def total() -> Tensor | float:
        losses: list[Tensor] = []
        for module, own in zip(modules, lists, strict=True):
            losses += [module.auxiliary_loss(*noted) for noted in own]  # type: ignore[operator]
            own.clear()
        if torch.is_grad_enabled() and not all(loss.requires_grad for loss in losses):
            raise ValueError(
                "an auxiliary loss has no gradient: its forward ran without gradients, as torch.utils.checkpoint does "
                "with use_reentrant=True; with use_reentrant=False it has one"
            )
        return sum(losses[1:], losses[0]) if losses else 0.0

    try:
        for module, own in zip(modules, lists, strict=True):
            module.noted = own  # type: ignore[assignment]
        yield total
    finally:
        for module, old in zip(modules, before, strict=True):
            module.noted = old


def having(model: nn.Module, method: str) -> list[nn.Module]:
    """The modules whose class has the method, each once."""
    # The class is asked: what wraps a module (torch.compile) answers for it as well.
    return [module for module in model.modules() if hasattr(type(module), method)]
