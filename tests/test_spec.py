"""Spec strings, and what is said of a word that nobody knows."""

from __future__ import annotations

import pytest

from matmix.spec import NAMED, Spec, close_names, hint, layer_specs, parse_spec, unknown_option


@pytest.mark.parametrize("spec", ["", "  ", None, 3, "attention(", "a b", "attention;ssd"])
def test_what_is_no_spec_is_said(spec: object) -> None:
    with pytest.raises(ValueError, match="spec"):
        parse_spec(spec)  # type: ignore[arg-type]


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
    with pytest.raises(ValueError, match="depth=0"):
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
