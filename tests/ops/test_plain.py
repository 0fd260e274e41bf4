"""A layer is plain when calling it is its class's forward on its tensors; everything that people hang on it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from matmix.ops import linear as fused
from matmix.ops.layers import ShortConv, StarReLU
from matmix.ops.plain import is_plain

KINDS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(6, 4),
    lambda: nn.Linear(6, 4, bias=False),
    lambda: nn.Conv1d(6, 6, 3, groups=6),
    lambda: nn.Conv2d(6, 4, 3),
    lambda: nn.BatchNorm1d(6),
    lambda: nn.LayerNorm(6),
    lambda: nn.LayerNorm(6, elementwise_affine=False),
    nn.GELU,
    nn.SiLU,
    nn.Identity,
    StarReLU,
    lambda: ShortConv(6, 3),
]


@pytest.mark.parametrize("build", KINDS)
def test_fresh_layers_are_plain(build: Callable[[], nn.Module]) -> None:
    layer = build()
    assert is_plain(layer, type(layer)) and is_plain(layer.eval().double(), type(layer))
    assert not is_plain(layer, nn.Module)
    layer.note = "a name of its own hides nothing"  # type: ignore[assignment]
    assert is_plain(layer, type(layer))
    swapped = {name: value.detach().clone() for name, value in layer.named_parameters()}
    layer.forward_pre_hook = None  # type: ignore[assignment]
    if swapped:
        with torch.nn.utils.stateless._reparametrize_module(layer, swapped):
            assert is_plain(layer, type(layer))


class Wrapped(nn.Linear):
    """Of another class, if only by name."""


class Doubled(nn.GELU):
    """An activation of another class."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Tagged(Tensor):
    """A tensor class of its own."""


def _hook(*_: Any) -> None:
    return None


def _adapter(layer: nn.Linear) -> None:
    layer.lora_A = nn.Linear(6, 2)


def _instance_forward(layer: nn.Linear) -> None:
    setattr(layer, "forward", lambda x: x)  # noqa: B010


def _offloaded(layer: nn.Linear) -> None:
    layer._hf_hook = object()  # type: ignore[assignment]


def _call_of_its_own(layer: nn.Linear) -> None:
    setattr(layer, "_call_impl", lambda x: x)  # noqa: B010


def _plain_attribute(layer: nn.Linear) -> None:
    weight = layer.weight.detach()
    del layer.weight
    setattr(layer, "weight", weight)  # noqa: B010


def _parameter(make: Callable[[Tensor], Tensor]) -> Callable[[nn.Linear], None]:
    def change(layer: nn.Linear) -> None:
        layer.weight = nn.Parameter(make(layer.weight.detach()), requires_grad=False)

    return change


def _old_weight_norm(layer: nn.Linear) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layer)


def _parametrized(layer: nn.Linear) -> None:
    parametrize.register_parametrization(layer, "weight", nn.Identity())


CHANGES: dict[str, Callable[[nn.Linear], Any]] = {
    "forward hook": lambda layer: layer.register_forward_hook(_hook),
    "forward hook with kwargs": lambda layer: layer.register_forward_hook(_hook, with_kwargs=True),
    "forward hook that is always called": lambda layer: layer.register_forward_hook(_hook, always_call=True),
    "forward pre-hook": lambda layer: layer.register_forward_pre_hook(_hook),
    "backward hook": lambda layer: layer.register_full_backward_hook(_hook),
    "backward pre-hook": lambda layer: layer.register_full_backward_pre_hook(_hook),
    "forward on the instance": _instance_forward,
    "call on the instance": _call_of_its_own,
    "a hook of accelerate's": _offloaded,
    "compiled by itself": lambda layer: layer.compile(backend="eager"),
    "a child": _adapter,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight norm": parametrizations.weight_norm,
    "weight norm, the old one": _old_weight_norm,
    "spectral norm, the old one": nn.utils.spectral_norm,
    "a parametrisation": _parametrized,
    "a plain attribute in the place of the weight": _plain_attribute,
    "on the meta device": lambda layer: layer.to("meta"),
    "a tensor class": _parameter(lambda weight: weight.as_subclass(Tagged)),
    "quantised": _parameter(lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)),
    "sparse": _parameter(lambda weight: weight.to_sparse()),
    "a bias of a tensor class": lambda layer: setattr(layer, "bias", nn.Parameter(layer.bias.as_subclass(Tagged))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_layers_are_not(what: str) -> None:
    layer = nn.Linear(6, 4)
    CHANGES[what](layer)
    assert not is_plain(layer, nn.Linear)


def test_another_class_is_not() -> None:
    assert not is_plain(Wrapped(6, 4), nn.Linear) and not is_plain(nn.Identity(), nn.Linear)
    assert not is_plain(torch.ao.nn.quantized.dynamic.Linear(6, 4), nn.Linear)


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
    ],
)
def test_no_layer_is_under_a_hook_of_all_modules(register: Callable[[Any], Any]) -> None:
    layer = nn.Linear(6, 4)
    handle = register(_hook)
    try:
        assert not is_plain(layer, nn.Linear)
    finally:
        handle.remove()
    assert is_plain(layer, nn.Linear)


def test_no_layer_is_of_a_patched_class(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(6, 4)
    assert is_plain(layer, nn.Linear)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", lambda self, x: x)
        assert not is_plain(layer, nn.Linear)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "__call__", lambda self, x: x)
        assert not is_plain(layer, nn.Linear)
    assert is_plain(layer, nn.Linear)


class Asks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x[:, :4] if is_plain(self.layer, nn.Linear) else self.layer(x)


def test_compilers_and_tracers_see_the_call() -> None:
    module, x = Asks(), torch.randn(3, 6)
    expected = module.layer(x)
    torch.testing.assert_close(torch.compile(module, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), expected)
    torch.testing.assert_close(torch.export.export(module, (x,), strict=True).module()(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(x), expected)


@pytest.fixture(params=["small", "large"])
def threshold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both sides of the size from which the kernel pays."""
    monkeypatch.setattr(fused, "WORTH", 0 if request.param == "large" else 2**60)
    yield


@pytest.mark.usefixtures("threshold")
def test_the_fused_layer_is_the_layer() -> None:
    """What is hung on a layer or its activation acts at every size."""
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    with torch.no_grad():
        for what in ("forward hook", "forward on the instance", "pruned", "a parametrisation"):
            for hang_on_act in (False, True) if "forward" in what else (False,):
                layer, act = nn.Linear(6, 6), nn.GELU()
                seen: list[int] = []
                target: Any = act if hang_on_act else layer
                if what == "forward hook":
                    target.register_forward_hook(lambda *_, seen=seen: seen.append(1))
                elif what == "forward on the instance":
                    target.forward = lambda x, seen=seen: (seen.append(1), x)[1]
                else:
                    CHANGES[what](layer)
                torch.testing.assert_close(fused.linear(layer, x, act), act(layer(x)), msg=what)
                assert not seen or len(seen) == 2, f"{what}: called {len(seen)} times of 2"
        layer, own = nn.Linear(6, 6), Doubled()
        torch.testing.assert_close(fused.linear(layer, x, own), own(layer(x)))
        layer, calls = nn.Linear(6, 4), []
        handle = nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
        fused.linear(layer, x, nn.GELU())
        handle.remove()
        assert len(calls) == 2
