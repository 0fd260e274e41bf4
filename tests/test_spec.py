"""Spec strings, and what is said of a word that nobody knows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matmix.spec import NAMED, Spec, close_names, hint, layer_specs, parse_spec, unknown_option


@pytest.mark.parametrize(
    "spec",
    ["", "  ", None, 3, "attention(", "a b", "attention;ssd", "()", "a()()", "a*0", "a*True", "a*100000000",
     "a*99*99*99", "a*9999, b*2", "(" * 900 + "a" + ")" * 900, "a(x=" + "[" * 300 + "]" * 300 + ")", "-" * 5000 + "a",
     "a(x=1, x=2)", "a(**{})",
     "a(x={[]: 1})", "a(x={[]})", "a(x=b)", "a(x=1/0)", "\ud800", "a(x='\ud800')", "a\0", "a," * 60_000],
)  # fmt: skip
def test_what_is_no_spec_is_said(spec: object) -> None:
    with pytest.raises(ValueError, match=r"^spec ") as caught:
        layer_specs(spec, 1)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 600


@given(st.text(st.sampled_from("ab1*,()=[]{}'\"-. \n\\#:@\0\ud800é"), max_size=30))
def test_any_text_is_a_spec_or_is_refused_as_one(text: str) -> None:
    try:
        calls = parse_spec(text)
    except ValueError as error:
        assert str(error).startswith("spec ")
    else:
        assert calls and parse_spec(", ".join(map(str, calls))) == calls


def test_specs_read_and_print_the_same() -> None:
    calls = parse_spec("attention(head_dim=4, causal=True)*2, heads('ssd', 'identity'), identity")
    assert [str(call) for call in calls] == [
        "attention(head_dim=4, causal=True)",
        "attention(head_dim=4, causal=True)",
        "heads('ssd', 'identity')",
        "identity",
    ]
    assert all(parse_spec(str(call)) == [call] for call in calls)
    assert calls[2] == Spec("heads", ("ssd", "identity"))


def test_one_spec_a_layer() -> None:
    assert [spec.name for spec in layer_specs("pooling*3, attention", 8)] == [*["pooling"] * 3, "attention"] * 2
    with pytest.raises(ValueError, match=r"depth must be .*, got 0"):
        layer_specs("pooling", 0)


def test_a_slip_is_answered_by_the_close_words_and_any_other_word_by_all() -> None:
    assert hint("hidra", ["attention", "hydra"]) == "; did you mean hydra?"
    assert hint("Hydra", ["hydra", "hydras", "HYDRA"]) == "; did you mean hydra, HYDRA, hydras?"
    assert hint("zzz", ["b", "a"]) == "; known: b, a"
    assert hint("zzz", []) == "; there is none"
    assert hint("zzz", [f"n{i}" for i in range(NAMED + 2)]).endswith(f", n{NAMED - 1} and 2 more")
    assert close_names("state", ["d_state", "states", "stat", "stats"]) == ["states", "stat", "d_state"]


def test_a_renamed_option_is_answered_by_its_name_here() -> None:
    assert unknown_option("hydra", "headdim", ["dim", "head_dim"]).endswith(
        "'headdim': headdim is called head_dim here"
    )
    assert unknown_option("mlp", "headdim", ["units"]) == "mlp has no option 'headdim'; known: units"
    assert unknown_option("digits", "dims", ["dim"], "setting") == "digits has no setting 'dims'; did you mean dim?"
