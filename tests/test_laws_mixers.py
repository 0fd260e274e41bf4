"""Every law over every registered mixer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import matmix
from matmix.testing import MIXER_LAWS, SLOW_MIXER_LAWS, MixerCase, apply_law
from matmix.testing import check as checks
from matmix.testing.strategies import mixer_cases
from tests.laws import MANY, QUICK, mixer_names, pairs, skip_if_rows_are_read, variants

DRAWN, DRAWN_IDS = pairs(MIXER_LAWS, mixer_names(), traced=False)
TRACED, TRACED_IDS = pairs(MIXER_LAWS, mixer_names(), traced=True)
# Mixers that are made of others, or are another one but for a layer: compilers that take tens of seconds a mixer run on
# the other one alone.
SAME_CODE = {
    "channels": "attention", "heads": "attention and sep_conv", "matrix_mixer": "hydra", "random": "dense",
    "scan": "ssd", "selective_channel": "vim", "selective_token": "ss2d", "simple_gla": "retention",
    "spatial_fc": "dense",
}  # fmt: skip
COMPILERS = ("compiles_by_inductor", "compiles_lengths_by_inductor", "compiles_at_several_sizes")
NAMES = mixer_names()
# Half a minute a mixer: one of each family of kernels, and those at which Inductor failed.
LENGTHS = ("delta_rule", "ema", "hydra", "low_rank", "mamba3", "s6")
SLOW_LAWS = {law: [name for name in NAMES if law not in COMPILERS or name not in SAME_CODE] for law in SLOW_MIXER_LAWS}
SLOW_LAWS["compiles_lengths_by_inductor"] = list(LENGTHS)
SLOW = [(law, name) for law, names in SLOW_LAWS.items() for name in names]
VARIANTS = variants()
# Laws of seconds or minutes a mixer, which run at one size: an image where the mixer takes one, or a sequence.
ONE_SIZE = {
    "compiles_by_inductor": slice(-1, None),
    "nothing_overwritten_at_size": slice(-1, None),
    "compiles_lengths_by_inductor": slice(0, 1),
    "compiles_at_several_sizes": slice(0, 1),
    "compiles_steps": slice(0, 1),
    "exports_any_length": slice(0, 1),
}
# Traced laws whose outcome may hang on the number of axes; how a mixer is built and stored does not.
OF_SIZES = ("compiles", "exports", "wrapped_layers", "nothing_overwritten")


@pytest.mark.parametrize(("law", "name"), DRAWN, ids=DRAWN_IDS)
def test_law(law: str, name: str) -> None:
    @QUICK
    @given(mixer_cases(matmix.mixer_info(name)))
    def check(case: MixerCase) -> None:
        apply_law(law, MIXER_LAWS[law], case)

    check()


def _traced(law: str, name: str, cases: slice) -> None:
    info = matmix.mixer_info(name)
    factory, dim = checks.factory_of(info)
    for case in checks.mixer_cases(factory, dim, info.traits, law)[cases]:
        apply_law(law, {**MIXER_LAWS, **SLOW_MIXER_LAWS}[law], case)


@pytest.mark.parametrize(("law", "name"), TRACED, ids=TRACED_IDS)
def test_traced_law(law: str, name: str) -> None:
    _traced(law, name, slice(-1, None))  # the image where it takes one: the harder of the two


@pytest.mark.slow
@pytest.mark.parametrize(("law", "name"), SLOW)
def test_slow_law(law: str, name: str) -> None:
    _traced(law, name, ONE_SIZE.get(law, slice(None)))


@pytest.mark.parametrize("size", [pytest.param(0, marks=pytest.mark.slow), 1], ids=["sequence", "largest"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_laws_with_an_option(variant: str, size: int) -> None:
    """On an image, or the sequence of a mixer that takes no image; the slow half on a sequence too."""
    factory, (_, dim) = VARIANTS[variant], checks.factory_of(matmix.mixer_info(variant.split("(")[0]))
    traits = checks.traits_of(factory, dim)
    if not size:
        skip_if_rows_are_read(factory, dim, "the largest size is this one")
    for law in (law for law in MIXER_LAWS if law not in checks.TRACED):
        cases = [c for c in checks.mixer_cases(factory, dim, traits, law) if c.grid in ((7,), (3, 5))]
        for case in cases[-1:] if size else cases[:-1]:
            apply_law(law, MIXER_LAWS[law], case)


@pytest.mark.slow
@pytest.mark.parametrize(("law", "name"), [pair for pair in TRACED if pair[0] in OF_SIZES])
def test_traced_law_on_sequences(law: str, name: str) -> None:
    factory, dim = checks.factory_of(matmix.mixer_info(name))
    if law == "exports" and matmix.mixer_info(name).traits.length == "any":
        pytest.skip("exports_any_length opens the batch too")
    skip_if_rows_are_read(factory, dim, "test_traced_law ran this graph")
    _traced(law, name, slice(-1))


@pytest.mark.slow
@pytest.mark.parametrize("name", mixer_names())
def test_laws_at_many_sizes(name: str) -> None:
    drawn = [law for law in MIXER_LAWS if law not in checks.TRACED]

    @MANY
    @given(mixer_cases(matmix.mixer_info(name)), st.sampled_from(drawn))
    def check(case: MixerCase, law: str) -> None:
        apply_law(law, MIXER_LAWS[law], case)

    check()
