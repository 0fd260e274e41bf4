"""Every law fails on what breaks it, and passes on the correct twin."""

from __future__ import annotations

import inspect

import pytest

from matmix.matrices import Matrix, all_classes
from matmix.mixers import Mixer
from matmix.testing import MATRIX_LAWS, MIXER_LAWS, PROPERTIES, SLOW_MIXER_LAWS, check_matrix, check_mixer
from tests.laws import matrix_classes
from tests.wrong import MODULES, WRONG_MIXERS, claims, matrices, mixers

SLOW = {"compiles_by_inductor", "compiles_lengths_by_inductor", "compiles_at_several_sizes"}


def _mark(law: str, *values: object) -> object:
    name = values[0].__name__  # type: ignore[attr-defined]
    return pytest.param(law, *values, id=f"{law}-{name}", marks=[pytest.mark.slow] if law in SLOW else [])


@pytest.mark.parametrize(("law", "cls", "why"), [_mark(*row) for row in matrices.WRONG_MATRICES])
def test_a_wrong_matrix_is_caught(law: str, cls: type[Matrix], why: str) -> None:
    with pytest.raises(AssertionError, match=rf"law '{law}' fails for {cls.__name__} \(grid=") as caught:
        check_matrix(cls, laws=[law])
    assert why in str(caught.value)


def test_the_correct_matrix_passes_every_law() -> None:
    check_matrix(matrices.Filter)


@pytest.mark.parametrize("word", sorted(claims.CLAIMS))
def test_a_property_that_does_not_hold_is_caught(word: str) -> None:
    right, false = claims.CLAIMS[word]
    check_matrix(right, laws=["properties"])
    with pytest.raises(AssertionError, match=f"property '{word}'"):
        check_matrix(false, laws=["properties"])


def test_an_unknown_property_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"unknown property 'magical'; known: banded, causal"):
        check_matrix(claims.UNKNOWN_WORD, laws=["properties"])
    with pytest.raises(AssertionError, match="states order"):
        check_matrix(claims.NO_ORDER, laws=["properties"])


@pytest.mark.parametrize(("law", "mixer", "twin", "why"), [_mark(*row) for row in WRONG_MIXERS])
def test_a_wrong_mixer_is_caught(law: str, mixer: type[Mixer], twin: type[Mixer], why: str) -> None:
    with pytest.raises(AssertionError, match=rf"law '{law}' fails for {mixer.__name__} \(dim=8, grid=") as caught:
        check_mixer(mixer, laws=[law])
    assert why in str(caught.value)
    check_mixer(twin, laws=[law])


@pytest.mark.parametrize(
    "mixer",
    [mixers.Decay, *(pytest.param(mixer, marks=pytest.mark.slow) for mixer in (mixers.Table, mixers.Average))],
    ids=lambda m: m.__name__,
)
def test_the_correct_mixers_pass_every_law(mixer: type[Mixer]) -> None:
    check_mixer(mixer)


def test_every_law_has_a_counterexample() -> None:
    assert {law for law, *_ in matrices.WRONG_MATRICES} | {"properties"} == set(MATRIX_LAWS)
    assert set(claims.CLAIMS) == set(PROPERTIES)
    assert {law for law, *_ in WRONG_MIXERS} == set(MIXER_LAWS) | set(SLOW_MIXER_LAWS)
    defined = {
        cls
        for module in MODULES
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__
    }
    used = {cls for _, cls, _ in matrices.WRONG_MATRICES} | {c for _, *pair, _ in WRONG_MIXERS for c in pair}
    assert defined - used <= {matrices.Filter, mixers.Fold, claims.UNKNOWN_WORD, claims.NO_ORDER}


def test_wrong_classes_are_not_enrolled() -> None:
    assert matrices.WrapsAround in all_classes()
    assert matrices.WrapsAround not in matrix_classes()


def test_an_unknown_law_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown laws \['gravity'\]; known: algebra"):
        check_matrix(matrices.Filter, laws=["gravity"])
    with pytest.raises(ValueError, match=r"unknown laws \['gravity'\]; known: aligned"):
        check_mixer(mixers.Decay, laws=["gravity"])


def test_a_factory_and_a_name_are_checked_too() -> None:
    check_mixer("identity", laws=["product", "mixes"])
    check_mixer(lambda dim, grid: mixers.Decay(dim, grid), laws=["product", "causal"])
    with pytest.raises(ValueError, match="builds no mixer of width 8"):
        check_mixer(lambda dim, grid: mixers.Decay(0, grid))
