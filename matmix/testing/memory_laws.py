"""The law of memory: a tensor that went into or came out of a module belongs to whoever holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from matmix.testing.cases import MixerCase
from matmix.testing.mixer_laws import slow_law, traced_law

_Kept = list[tuple[str, Tensor, Tensor]]


def overwritten(modules: Iterable[tuple[str, nn.Module]], run: Callable[[], object]) -> list[str]:
    """Which inputs and outputs of modules (name, module) changed after the modules saw them, when ``run`` is over."""
    kept: _Kept = []

    def keep(what: str, values: Any) -> None:
        kept.extend((what, t, t.detach().clone()) for t in pytree.tree_leaves(values) if isinstance(t, Tensor))

    hooks = []
    for name, module in modules:

        def before(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            keep(f"an input of {name}", (args, kwargs))

        def after(_: nn.Module, args: Any, out: Any, name: str = name) -> None:
            keep(f"an output of {name}", out)

        hooks += [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [what for what, tensor, copy in kept if not torch.equal(tensor.detach().nan_to_num(), copy.nan_to_num())]


def check_memory(module: nn.Module, inputs: Tensor, names: Iterable[str] | None = None) -> None:
    """Nothing that a hook keeps is overwritten later in the forward.

    In eval mode and in training, without gradients and with frozen weights, where work in place is safe otherwise;
    modules are hooked one by one, since a hook on one must not hang on those of others, and all together.

    Args:
        module: what runs; it stays as it was, but for its state of training.
        inputs: its one input.
        names: of the modules that are hooked alone; all where absent.
    """
    parts = [(name or "the whole", each) for name, each in module.named_modules(remove_duplicate=False)]
    alone = parts if names is None else [(name or "the whole", module.get_submodule(name)) for name in names]
    for train in (False, True):
        module.train(train)
        for what, group in [*((name, [(name, each)]) for name, each in alone), ("all modules", parts)]:
            with torch.no_grad():
                found = overwritten(group, lambda: module(inputs))
            mode = "training" if train else "eval mode"
            assert not found, f"{mode}, hooks on {what}: overwritten later: {', '.join(sorted(set(found)))}"


@traced_law
def nothing_overwritten(case: MixerCase) -> None:
    """What hooks keep of a forward without gradients, inputs and outputs of every module, stays as it was, in eval mode
    and in training."""
    check_memory(case.build(torch.float32), case.tokens(torch.float32))


@slow_law
def nothing_overwritten_at_size(case: MixerCase) -> None:
    """The same where kernels for large inputs pay, and for weights that want no gradient while gradients are on."""
    large = case.on((64,) if len(case.grid) == 1 else (8, 8), batch=1024)
    mixer, x = large.build(torch.float32), large.tokens(torch.float32)
    parts = list(mixer.named_modules())
    for name, each in parts:
        with torch.no_grad():
            found = overwritten([(name or "the mixer", each)], lambda: mixer(x))
        assert not found, f"hooks on {name or 'the mixer'}: overwritten later: {', '.join(sorted(set(found)))}"
    frozen, x = case.build(torch.float32).requires_grad_(False), case.tokens(torch.float32)
    for name, each in frozen.named_modules():
        found = overwritten([(name or "the mixer", each)], lambda: frozen(x))
        assert not found, f"frozen, hooks on {name or 'the mixer'}: overwritten later: {', '.join(sorted(set(found)))}"
