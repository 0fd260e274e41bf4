"""The laws of layers: they are called, so that what hangs on them, stands in their place or brings their weights acts.

Adapters, pruning, quantisation and offloading know a mixer's layers and nothing else of it. Every law here runs below
and above the sizes from which fast paths pay.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from matmix.mixers.base import Mixer
from matmix.testing.cases import MixerCase
from matmix.testing.compare import close
from matmix.testing.mixer_laws import law, traced_law


@contextmanager
def fast_from(size: int) -> Iterator[None]:
    """Inside, every fast path whose module says by ``WORTH`` from which size on it pays is taken from this size on."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("matmix.") and isinstance(getattr(module, "WORTH", None), int):
                stack.enter_context(patch.object(module, "WORTH", size))
        yield


SIZES = {"": 2**60, " (as for large inputs)": 0}
"""words -> from which size on fast paths are taken: never, and always."""


def owners(mixer: nn.Module) -> dict[str, nn.Module]:
    """The modules below that have parameters of their own, by name."""
    return {n: m for n, m in mixer.named_modules() if n and any(p is not None for p in m._parameters.values())}


@law
def layers_are_called(case: MixerCase) -> None:
    """A forward runs the forward hooks of every module that has parameters, in eval mode and in training."""
    for (words, size), train in itertools.product(SIZES.items(), case.modes):
        mixer, x = case.build(torch.float32).train(train), case.tokens(torch.float32)
        called: set[str] = set()
        modules = owners(mixer)
        for name, module in modules.items():
            module.register_forward_hook(lambda *_, name=name, called=called: called.add(name))
        with fast_from(size), torch.set_grad_enabled(train):
            mixer(x)
        missing = sorted(modules.keys() - called)
        mode = "training" if train else "eval"
        assert not missing, f"{mode}{words}: {', '.join(missing)} not called, but read or left out"


class Adapted(nn.Module):
    """``layer(x) + delta(x)``, with the attributes of adapters that are in use: ``weight`` is that of the layer."""

    def __init__(self, layer: nn.Module, delta: nn.Module) -> None:
        super().__init__()
        self.layer, self.delta = layer, delta

    @property
    def weight(self) -> Any:
        return self.layer.weight

    @property
    def bias(self) -> Any:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.delta(x)


def adapted(mixer: Mixer, seed: int = 0) -> tuple[Mixer, Mixer, list[tuple[str, nn.Parameter, nn.Parameter]]]:
    """The mixer with another map beside each of its linear layers and convolutions, and the same with merged weights.

    Returns:
        Both, and the weights of the other maps: their names, the parameters, and those they are merged into.
    """
    merged, pairs = copy.deepcopy(mixer), []
    layers = [(n, m) for n, m in mixer.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]
    draw = torch.Generator().manual_seed(seed)
    for name, layer in layers:
        delta, twin = copy.deepcopy(layer), merged.get_submodule(name)
        with torch.no_grad():
            for kind, parameter in delta.named_parameters():
                noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(parameter)
                parameter.copy_(0.5 * noise * layer.weight.std())
                into = twin.get_parameter(kind)
                into.add_(parameter)
                pairs.append((f"{name}.{kind}", parameter, into))
        parent, _, last = name.rpartition(".")
        setattr(mixer.get_submodule(parent), last, Adapted(layer, delta))
    return mixer, merged, pairs


@traced_law
def wrapped_layers(case: MixerCase) -> None:
    """``layer(x) + delta(x)`` in the place of every linear layer and convolution does what the merged weights do: in
    outputs, all gradients and the matrix, and token by token."""
    mixer, merged, pairs = adapted(case.build())
    x, weight = case.tokens(), case.tokens(name="weight")
    results = []
    for each in (mixer, merged):
        tokens = x.clone().requires_grad_()
        out = each(tokens)
        (out * weight).sum().backward()
        assert tokens.grad is not None
        results.append((out.detach(), tokens.grad))
    close(results[0][0], results[1][0], "forward")
    close(results[0][1], results[1][1], "the gradient of the tokens")
    for name, own, whole in pairs:
        assert own.grad is not None, f"what is beside {name} gets no gradient"
        assert whole.grad is not None
        close(own.grad, whole.grad, f"the gradient of what is beside {name}")
    with torch.no_grad():
        close(mixer.matrix(x).to_dense(), merged.matrix(x).to_dense(), "the matrix")
        mixer, merged, x = mixer.float(), merged.float(), x.float()
        for words, size in SIZES.items():
            with fast_from(size):
                close(mixer(x), merged(x), f"forward in float32{words}")
        if mixer.traits.recurrent:
            mixer, merged, _ = adapted(case.flat().build())
            _steps(mixer, merged, case.tokens())


def _steps(mixer: Mixer, merged: Mixer, x: Tensor) -> None:
    """``prefill`` and ``step`` of two mixers."""
    half = max(1, x.shape[1] // 2)
    (out, state), (expected, other) = mixer.prefill(x[:, :half]), merged.prefill(x[:, :half])
    close(out, expected, "prefill")
    for token in x[:, half:].unbind(1):
        (out, state), (expected, other) = mixer.step(token, state), merged.step(token, other)
        close(out, expected, "step")
    start, other = mixer.init_state(x.shape[0]), merged.init_state(x.shape[0])
    close(mixer.step(x[:, 0], start)[0], merged.step(x[:, 0], other)[0], "the first step")


def offloaded(mixer: Mixer) -> Mixer:
    """The mixer with its weights on the meta device, brought by each module's own forward for as long as that runs."""
    for module in mixer.modules():
        weights = {name: p for name, p in module._parameters.items() if p is not None}
        if not weights:
            continue
        shells = {name: nn.Parameter(p.detach().to("meta"), p.requires_grad) for name, p in weights.items()}

        def forward(
            *args: Any, module: Any = module, inner: Any = module.forward, weights: Any = weights, shells: Any = shells,
            **options: Any,
        ) -> Any:  # fmt: skip
            module._parameters.update(weights)
            try:
                return inner(*args, **options)
            finally:
                module._parameters.update(shells)

        module._parameters.update(shells)
        module.forward = forward
    return mixer


@traced_law
def offloaded_layers(case: MixerCase) -> None:
    """A mixer whose weights are in memory only while the module that owns them is called gives what a resident one
    gives."""
    x = case.tokens(torch.float32)
    with torch.no_grad():
        for words, size in SIZES.items():
            with fast_from(size):
                away, resident = offloaded(case.build(torch.float32)), case.build(torch.float32)
                close(away(x), resident(x), f"offloaded{words}")
