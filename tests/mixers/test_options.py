"""One word for one idea: the options of all mixers, and what is said of the words that they had before."""

from __future__ import annotations

import copy
import inspect
import pickle
import typing

import pytest
import torch

import matmix
from matmix.mixers import Grid, Mixer, Traits, create_mixer, list_mixers, mixer_info
from matmix.mixers.hydra import Hydra
from matmix.mixers.options import OPTIONS
from matmix.mixers.registry import MixerInfo
from matmix.spec import OPPOSITE, RENAMED


def own() -> list[MixerInfo]:
    infos = [mixer_info(name) for name in list_mixers()]
    return [info for info in infos if info.cls.__module__.startswith("matmix.")]  # other tests register theirs


def test_mixers_take_their_words_from_one_list() -> None:
    used = {(info.name, option) for info in own() for option in inspect.signature(info.cls).parameters}
    assert sorted((name, option) for name, option in used if option not in OPTIONS) == []
    assert set(OPTIONS) == {option for _, option in used}, "a word that no mixer uses"
    new = {word for words in RENAMED.values() for word in words}
    assert new <= set(OPTIONS) and set(RENAMED) >= OPPOSITE


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hydra(headdim=8)", "headdim is called head_dim here"),
        ("afno(expansion=2)", "expansion is called bottleneck here"),
        ("afno(hidden=2)", "hidden is called mlp_ratio here"),
        ("sep_conv(expansion=2)", "expansion is called expand here"),
        ("mega(chunk=4)", "chunk is called block here"),
        ("s4d(bidirectional=True)", "bidirectional is called causal here, where True was False"),
        ("identity(headdim=8)", "identity has no option 'headdim'; there is none"),
    ],
)
def test_an_old_word_is_answered_by_the_new_one(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mixer(spec, 8)


def test_constructors_say_the_same_and_stay_what_they_were() -> None:
    with pytest.raises(TypeError, match=r"^Hydra has no option 'headdim': headdim is called head_dim here$"):
        Hydra(64, headdim=8)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^Identity has no option 'expand'; known: dim, grid$"):
        matmix.mixer_info("identity").cls(8, expand=2)  # type: ignore[call-arg]
    assert list(inspect.signature(Hydra).parameters)[:3] == ["dim", "grid", "expand"]
    assert Hydra.__init__.__qualname__ == "Hydra.__init__"
    mixer = Hydra(8, head_dim=4, d_state=2)
    for twin in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))):
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), mixer.parameters(), strict=True))
    with torch.device("meta"):
        assert Hydra(8, head_dim=4).in_proj.weight.is_meta


WRONG: tuple[object, ...] = (
    "False", "", b"x", 0, -1, 1.5, -0.5, 2**40, 10**400, float("nan"), float("inf"), 1e300, True, None, (), [], (1,),
    (0.1, float("nan")), ("rows",), {}, 1j, object, object(),
)  # fmt: skip


@pytest.mark.parametrize("info", own(), ids=lambda info: info.name)
def test_every_value_of_every_option_is_taken_or_refused_by_its_name(info: MixerInfo) -> None:
    """No error from within PyTorch, nothing that is taken for what it is not. ``dim`` may be refused by an option that
    does not divide it, ``spec`` by what it holds."""
    if info.name == "heads":
        return
    smallest = {"grid": (16,) if 1 in info.traits.dims else (4, 4), "dim": 8, **info.smallest}
    for option in inspect.signature(info.cls).parameters:
        for value in WRONG:
            try:
                with torch.device("meta"):
                    info.cls(**{**smallest, option: value})
            except ValueError as error:
                message = str(error)
                assert option in message or "unknown mixer" in message or option == "dim", (value, message)
                assert repr(value)[:200] in message or option == "dim" or not isinstance(value, int | float), message
            else:
                assert value is None or not isinstance(value, type | bytes | complex | dict), (option, value)
    kinds = typing.get_type_hints(info.cls.__init__)
    for option, kind in kinds.items():
        for value in {bool: ("False", 1, None), int: (True, 1.5, "2"), float: (True, "2"), str: (1, None)}.get(
            kind, ()
        ):
            if option in OPTIONS:
                with pytest.raises(ValueError, match=f"{info.cls.__name__}: {option} must be"):
                    info.cls(**{**smallest, option: value})


def test_a_mixer_of_another_package_has_its_own_bounds_and_may_have_annotations_for_type_checkers_alone() -> None:
    class Other(Mixer):
        traits = Traits()

        def __init__(self, dim: int, grid: Grid | None = None, *, window: int = 0, causal: bool = False) -> None:
            super().__init__(dim, grid)

    class Hinted(Mixer):
        traits = Traits()

        def __init__(self, dim: int, grid: Grid | None = None, *, act: Unknown = None) -> None:  # type: ignore[name-defined]  # noqa: F821
            super().__init__(dim, grid)

    Other(8, window=0), Hinted(8, act=3)
    with pytest.raises(ValueError, match=r"Other: causal must be True or False, got 'False'"):
        Other(8, causal="False")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Hinted has no option 'akt'; did you mean act"):
        Hinted(8, akt=3)
