"""Adapters join by a class, by register_adapter and by an entry point; what they do not understand they refuse."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor, nn

from matmix import surgery
from matmix.adapters import adapter_named, adapters, registry
from matmix.adapters.base import parameters_of
from matmix.matrices import Dense
from matmix.surgery import Adapter, Attended, Call, Site


class Blend(nn.Module):
    """Somebody's own mixing module: channels first, a tuple out, one learned matrix."""

    def __init__(self, dim: int = 6, length: int = 5) -> None:
        super().__init__()
        self.blend = nn.Parameter(torch.randn(length, length))
        self.out = nn.Linear(dim, dim)

    def forward(self, series: Tensor, scale: float | None = None, verbose: bool = False) -> tuple[Tensor, None]:
        mixed = self.out((series @ self.blend.T).mT).mT
        return (mixed if scale is None else mixed * scale), None


class BlendAdapter(Adapter):
    """One small class joins them."""

    name = "blend"
    understood = frozenset({"series"})
    harmless = frozenset({"verbose"})

    def site(self, place):
        if not isinstance(getattr(place.module, "blend", None), nn.Parameter):
            return None
        length, dim = place.module.blend.shape[0], place.module.out.in_features
        return Site(
            place.name, "mixer", self.name, dim, type(place.module).__name__, causal=False, length=length,
            parameters=parameters_of(place.module), options={"fixed": True},
        )  # fmt: skip

    def read(self, site, args, kwargs):
        return Call(self.arguments(site, args, kwargs)["series"].mT)

    def write(self, site, call, mixed):
        return mixed.mT, None

    def attended(self, site, module, args, kwargs):
        series = self.arguments(site, args, kwargs)["series"]
        return Attended(
            Dense(module.blend[None, None]),
            series.mT.unsqueeze(1),
            lambda mixed: (module.out(mixed.squeeze(1)).mT, None),
        )

    def sample(self, site, tokens):
        return (tokens.mT,), {}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Blend(), Blend()])

    def forward(self, x: Tensor, **options) -> Tensor:
        for layer in self.layers:
            x = x + layer(x, **options)[0]
        return x


@pytest.fixture
def clean():
    """The registry as it is, and again afterwards."""
    adapters()
    before = dict(registry._ADAPTERS)
    yield
    registry._ADAPTERS.clear()
    registry._ADAPTERS.update(before)


def check() -> None:
    model, x = Model(), torch.randn(3, 6, 5)
    before = model(x)
    assert [site.adapter for site in surgery.find(model)] == ["blend", "blend"]
    report = surgery.replace(model, "dense", where="layers.1")
    assert model(x).shape == x.shape and not torch.equal(model(x), before)
    assert model(x, verbose=True).shape == x.shape
    with pytest.raises(ValueError, match=r"layers.1: the adapter 'blend' does not understand the argument 'scale'"):
        model(x, scale=2.0)
    report.restore()
    assert torch.equal(model(x), before)


def test_a_registered_class_joins(clean):
    assert not surgery.find(Model())
    surgery.register_adapter(BlendAdapter)
    check()


def test_an_entry_point_joins(clean, monkeypatch):
    entry = EntryPoint("blend", f"{__name__}:BlendAdapter", "matmix.adapters")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == "matmix.adapters" else [])
    monkeypatch.setattr(registry, "_PLUGINS_LOADED", False)
    check()


def test_what_an_adapter_says_is_tried_before_it_is_believed(clean):
    class Wrong(BlendAdapter):
        def attended(self, site, module, args, kwargs):
            found = super().attended(site, module, args, kwargs)
            return found._replace(values=found.values * 1.01)

    surgery.register_adapter(Wrong)
    assert not surgery.find(Model())


def test_names_and_classes_are_checked(clean):
    with pytest.raises(ValueError, match="unknown adapter 'blnd'"):
        adapter_named("blnd")
    with pytest.raises(TypeError, match="an adapter is a subclass"):
        surgery.register_adapter(Blend)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="needs a name"):
        surgery.register_adapter(type("Nameless", (Adapter,), {}))
    with pytest.raises(ValueError, match="the adapter name 'mixer' is taken"):
        surgery.register_adapter(type("Other", (Adapter,), {"name": "mixer"}))
