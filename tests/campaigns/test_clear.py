"""The definition of a clear error tells clear ones from others."""

from __future__ import annotations

import pytest
import torch

import matmix
from matmix.mixers import create_mixer
from tests.campaigns.clear import Tally, shown, unclear, unclear_text


def _error(call: object) -> BaseException:
    with pytest.raises(BaseException) as caught:
        call()  # type: ignore[operator]
    return caught.value


def test_a_refusal_of_ours_is_clear() -> None:
    error = _error(lambda: create_mixer("hydra(expand=-1)", 8))
    assert unclear(error, ["expand"], [-1]) == ""
    assert unclear(error, ["d_state"], [-1]) == "does not name d_state"
    assert unclear(error, ["expand"], [17]) == "does not show the value"
    x = torch.zeros(2, 3)
    assert unclear(_error(lambda: create_mixer("identity", 8)(x)), ["x"], [x]) == ""


def test_errors_of_others_and_of_other_kinds_are_not() -> None:
    assert unclear(_error(lambda: torch.zeros(2) @ torch.zeros(3))) == "a RuntimeError"
    assert unclear(_error(lambda: int("must be of at least 1"))) == "raised outside of the project"
    assert unclear(_error(lambda: matmix.create_mixer())) == "raised outside of the project"  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no message"),
        ("steps must be\n" * 9, "10 lines, 126 characters"),
        ("Traceback (most recent call last)\n steps must be 1, got 3", "a traceback"),
        ("footsteps must be 1, got 3", "does not name steps"),
        ("steps must be of at least 1", "does not show the value"),
        ("steps: 3", "does not say what is allowed"),
        ("steps must be a whole number of at least 1, got 3", ""),
    ],
)
def test_a_message_names_argument_value_and_what_is_allowed(text: str, why: str) -> None:
    assert unclear_text(text, ["steps"], [3]) == why


def test_values_are_shown_in_their_own_way() -> None:
    assert shown(torch.zeros(2, 3)) == {"(2, 3)", "torch.float32", "cpu", "torch.strided"}
    assert "list" in shown([1]) and "1" not in shown([1]) and shown(2) == {"2"} and "NoneType" in shown(None)


def test_a_tally_groups_by_cause_and_place() -> None:
    tally = Tally()
    for _ in range(3):
        tally.refused(_error(lambda: torch.zeros(2) @ torch.zeros(3)), "@")
    tally.refused(_error(lambda: create_mixer("hydra(expand=-1)", 8)), "hydra", ["expand"], [-1])
    assert (tally.calls, tally.clear, tally.unclear) == (4, 1, 3)
    assert "3 a RuntimeError" in str(tally)
