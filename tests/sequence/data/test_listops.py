"""ListOps: the published generator's very trees and values, whatever the process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from sequence.data.listops import TOKENS, Malformed, Shape, accepted, block, draw, trees, value
from sequence.data.parallel import ordered_map

PUBLISHED = json.loads((Path(__file__).parents[2] / "reference" / "sequence" / "data_listops.json").read_text())
LENGTHS = ((3, 60), (60, 200), (500, 2000))  # of the groups of published rows, by their seed


def tokens(source: str) -> list[str]:
    return [word.replace("]", "X") for word in source.split() if word not in "()"]


def test_trees_and_values_are_the_published() -> None:
    assert sorted(TOKENS) == PUBLISHED["vocabulary"]
    for seed, limits in enumerate(LENGTHS):
        rows = [row for row in PUBLISHED["rows"] if row["seed"] == seed]
        shape = Shape(rows[0]["max_depth"], rows[0]["max_args"], *limits)
        taken = islice(accepted(random.Random(seed), shape, 10_000), len(rows))
        for row, tree in zip(rows, taken, strict=True):
            assert [TOKENS[token] for token in tree] == tokens(row["source"])
            assert value(tree) == row["target"] and len(tree) == row["length"]
    assert [row["target"] for row in PUBLISHED["rows"]] == PUBLISHED["output"]["values"]


def test_every_draw_has_the_published_length() -> None:
    stream = PUBLISHED["length_stream"]
    drawn = trees(random.Random(stream["seed"]), stream["max_depth"], stream["max_args"])
    assert [len(tree) for tree in islice(drawn, stream["calls"])] == stream["lengths"]


def test_lengths_and_classes_are_those_of_the_release() -> None:
    """8.3 % of the draws are taken, of 1,026 tokens in the mean; 0 is the most frequent value, about 17 %."""
    drawn, taken = trees(random.Random(5), 10, 10), []
    for tree in islice(drawn, 12_000):
        if 500 < len(tree) < 2000:
            taken.append(tree)
    assert len(taken) / 12_000 == pytest.approx(0.083, abs=0.01)
    lengths = np.array([len(tree) for tree in taken])
    assert lengths.mean() == pytest.approx(1026, abs=4 * lengths.std() / len(taken) ** 0.5)
    counts = np.bincount([value(tree) for tree in taken], minlength=10) / len(taken)
    assert counts.argmax() in (0, 9) and counts[0] == pytest.approx(0.169, abs=0.05)


def test_rows_differ_and_follow_from_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(4, 5, 6, 40)
    alone = list(draw(shape, 600, 0))
    monkeypatch.setenv("MATMIX_WORKERS", "2")
    assert list(draw(shape, 600, 0, ordered_map)) == alone
    assert list(draw(shape, 300, 0)) == alone[:300]
    assert len({tree for tree, _ in alone}) == 600
    assert all(6 < len(tree) < 40 and value(tree) == label for tree, label in alone)
    assert next(draw(shape, 1, 1)) != alone[0]
    assert [len(block((shape, 0, index))[0]) for index in (0, 1)] == [250, 250]


def test_no_more_trees_than_there_are() -> None:
    """Depth 2 with up to two digits has 4 operators times 100 pairs: 400 trees."""
    with pytest.raises(ValueError, match=r"listops: \d+ of 500 different trees with 3 < length < 5.*allowed: fewer"):
        list(draw(Shape(2, 2, 3, 5), 500, 0))
    assert len(list(draw(Shape(2, 2, 3, 5), 300, 0))) == 300


@pytest.mark.slow
def test_rows_do_not_depend_on_hashes() -> None:
    run = (
        "import hashlib; from sequence.data.listops import Shape, draw; "
        "print(hashlib.sha256(b''.join(tree for tree, _ in draw(Shape(), 300, 0))).hexdigest())"
    )
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        found.add(subprocess.run([sys.executable, "-c", run], env=environment, capture_output=True, check=True).stdout)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("[MAX 1 2", "1 lists are not closed"),
        ("[MAX 1 X 3", "token 4 of 4, 3, stands behind the end"),
        ("[MAX [MIN X X", "token 3 of 4: .MIN of nothing"),
        ("X", "token 1 of 1, X, closes what was never opened"),
        ("", "it has no token"),
    ],
)
def test_what_is_no_list_says_where(words: str, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        value(bytes(TOKENS.index(word) for word in words.split()))
