"""load_published: everything in its place, or an error that names it."""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import matmix
from matmix import load_published


def _split(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published: one joint matrix; ours: two layers."""
    first, second = state["joint"].chunk(2)
    return {"a.weight": first, "b.weight": second, "scale": state["gamma"]}


class Pair(nn.Module):
    published: ClassVar = {
        "some/repo": lambda module, state: state,
        "other/repo": _split,
        "copies/all": lambda module, state: {
            k.removeprefix("net."): v for k, v in (state | {}).items() if k != "net.epoch"
        },
        "spreads/all": lambda module, state: {**state},
        "renames/one": lambda module, state: state | {"scale": state.pop("gamma")},
    }

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2, bias=False)
        self.b = nn.Linear(3, 2, bias=False)
        self.register_buffer("scale", torch.ones(2))


class Model(nn.Module):
    """A composite: the class that has ``published`` maps its parts' entries too."""

    published: ClassVar = {"some/repo": lambda module, state: {f"pair.{k}": v for k, v in state.items()}}

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()


def _state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(2, 3), "b.weight": torch.randn(2, 3), "scale": torch.randn(2)}


def test_loads_in_place_and_returns_the_module() -> None:
    module, state = Pair(), _state()
    weight = module.a.weight
    assert load_published(module, state, source="some/repo") is module
    assert module.a.weight is weight
    assert weight.requires_grad
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name])
    state["a.weight"].zero_()
    assert module.a.weight.abs().sum() > 0


def test_renames_reshapes_and_keeps_the_dtype_of_the_module() -> None:
    module = Pair().double()
    joint = torch.randn(4, 3)
    load_published(module, {"joint": joint, "gamma": torch.zeros(2)}, source="other/repo")
    assert module.b.weight.dtype == torch.float64
    assert torch.equal(module.b.weight, joint[2:].double())
    assert torch.equal(module.scale, torch.zeros(2).double())


def test_takes_arrays_and_leaves_them_alone() -> None:
    arrays = {name: value.numpy().astype(np.float64) for name, value in _state().items()}
    arrays["a.weight"].flags.writeable = False
    module = load_published(Pair(), arrays, source="some/repo")
    np.testing.assert_allclose(module.a.weight.detach().numpy(), arrays["a.weight"], rtol=1e-6)
    with torch.no_grad():
        module.b.weight.zero_()
    assert np.abs(arrays["b.weight"]).sum() > 0


def test_a_composite_loads_through_its_own_class() -> None:
    module, state = Model(), _state()
    load_published(module, state, source="some/repo")
    assert torch.equal(module.pair.a.weight, state["a.weight"])


def _error(state: dict[str, object], source: str = "some/repo", module: nn.Module | None = None) -> str:
    module = Pair() if module is None else module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_published(module, state, source=source)  # type: ignore[arg-type]
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), "a refused checkpoint changed the module"
    return str(caught.value)


def test_names_all_that_does_not_fit() -> None:
    state = _state()
    del state["scale"]
    state["b.weight"] = torch.zeros(3, 2)
    state["epoch"] = torch.tensor(3)
    assert _error(state) == (
        "Pair cannot load weights of 'some/repo': missing: scale; unexpected: epoch; "
        "of the wrong shape: b.weight (3, 2) for (2, 3)"
    )


def test_an_entry_that_the_conversion_never_reads_is_left_over() -> None:
    state = {"joint": torch.zeros(4, 3), "gamma": torch.zeros(2), "joint_bias": torch.zeros(4)}
    assert _error(state, "other/repo").endswith("'other/repo': left over: joint_bias")


def test_an_entry_that_the_conversion_wants_is_missing() -> None:
    assert _error({"joint": torch.zeros(4, 3)}, "other/repo").endswith("'other/repo': missing: gamma")


@pytest.mark.parametrize("source", ["copies/all", "spreads/all", "renames/one"])
def test_ways_of_reading_everything_leave_nothing_over(source: str) -> None:
    state = _state()
    if source == "copies/all":
        state = {f"net.{k}": v for k, v in state.items()} | {"net.epoch": torch.tensor(1)}
    if source == "renames/one":
        state["gamma"] = state.pop("scale")
    module = Pair()
    if source == "renames/one":
        load_published(module, state, source=source)
        assert torch.equal(module.scale, state["gamma"])
        return
    load_published(module, state, source=source)
    assert torch.equal(module.a.weight, state.get("a.weight", state.get("net.a.weight")))


def test_complex_weights_do_not_lose_their_imaginary_part() -> None:
    state = _state()
    state["scale"] = torch.ones(2, dtype=torch.complex64)
    assert "complex where ours is real: scale torch.complex64 for torch.float32" in _error(state)


def test_a_checkpoint_around_the_state_dict_is_named() -> None:
    message = _error({"model": {"a.weight": torch.zeros(2, 3)}, "epoch": 3})
    assert "state_dict['model'] is no tensor or array but a dict with the keys a.weight" in message


def test_an_unknown_source_lists_the_known_ones() -> None:
    message = _error(_state(), "no/repo")
    assert "source: Pair loads no weights of 'no/repo'; it knows: copies/all, other/repo, renames/one" in message
    assert _error({}, "some/repo", nn.Linear(2, 2)).endswith("it knows: none")


def test_every_mixer_names_its_sources_as_owner_and_repo() -> None:
    for name in matmix.list_mixers():
        published = getattr(matmix.mixer_info(name).cls, "published", {})
        for source, convert in published.items():
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", source), f"{name}: {source!r}"
            assert callable(convert)
