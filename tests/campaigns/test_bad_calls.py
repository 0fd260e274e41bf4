"""Seeded campaigns of bad calls: every answer is right, or a refusal that says which argument, what it was and what is
allowed (``tests/campaigns/clear.py``).

Figures of a run are printed with ``-s``; what was unclear is grouped by cause and place.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.campaigns import (
    command_lines,
    matrix_calls,
    mixer_calls,
    reader_calls,
    spec_calls,
    study_files,
    surgery_calls,
    text_calls,
    vision_calls,
    weight_calls,
)
from tests.campaigns.clear import Tally
from tests.campaigns.odd import count

CAMPAIGNS = {
    "mixers": mixer_calls.calls,
    "matrices": matrix_calls.calls,
    "weights": weight_calls.calls,
    "specs": spec_calls.calls,
    "images": vision_calls.calls,
    "texts": text_calls.calls,
    "surgery": surgery_calls.calls,
    "readers": reader_calls.calls,
}

QUICK = {"mixers": 700, "matrices": 400, "weights": 400, "specs": 200, "images": 80, "texts": 150, "surgery": 80,
         "readers": 40}  # fmt: skip
LARGE = {"mixers": 12_000, "matrices": 12_000, "weights": 6_000, "specs": 6_000, "images": 8_000, "texts": 12_000,
         "surgery": 6_000, "readers": 6_000}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    """A name that is drawn for a folder may be taken for one."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("subject", CAMPAIGNS)
def test_every_bad_call_gets_a_clear_answer(subject: str) -> None:
    _run(subject, QUICK[subject], seed=0)


@pytest.mark.large
@pytest.mark.parametrize("subject", CAMPAIGNS)
def test_every_one_of_many_bad_calls_gets_a_clear_answer(subject: str) -> None:
    _run(subject, LARGE[subject], seed=1)


@pytest.mark.parametrize(("number", "seed"), [(150, 0), pytest.param(3_000, 1, marks=pytest.mark.large)])
def test_damaged_study_files_get_a_clear_answer(number: int, seed: int, tmp_path: Path) -> None:
    _check("study files", count(study_files.calls(seed, tmp_path), number), number)


@pytest.mark.parametrize(("number", "seed"), [(12, 0)])
def test_damaged_command_lines_get_a_clear_answer(number: int, seed: int, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    command_lines.fill(tmp_path / "given")
    with command_lines.quick(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tally = command_lines.count_lines(seed, number, tmp_path / "given")
    _check("command lines", tally, number)


def _run(subject: str, number: int, seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, on nested and sparse tensors
        tally = count(CAMPAIGNS[subject](seed), number)
    _check(subject, tally, number)


def _check(subject: str, tally: Tally, number: int) -> None:
    print(f"{subject}: {tally}")
    assert tally.calls == number
    assert tally.clear > number / 2, "a campaign of calls that are hardly ever refused shows nothing"
    assert not tally.unclear, str(tally)
