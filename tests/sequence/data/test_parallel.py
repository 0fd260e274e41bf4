"""Work in several processes: in order, little at a time, and no process left behind."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterator

import pytest

from sequence.data.parallel import chunks, ordered_map, progress, workers


def slow_square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    if number == 50:
        raise ValueError("number 50")
    return number * number


@pytest.mark.parametrize("count", ["0", "2"])
def test_results_are_in_order_and_little_is_read_ahead(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMIX_WORKERS", count)
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        while True:
            yield read
            read += 1

    found = ordered_map(slow_square, numbers(), ahead=2)
    assert list(itertools.islice(found, 10)) == [number * number for number in range(10)]
    assert read <= 10 + 2 * 2
    found.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("count", ["1", "2"])
def test_an_error_comes_through_and_ends_all(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMIX_WORKERS", count)
    with pytest.raises(ValueError, match="number 50"):
        list(ordered_map(slow_square, iter(range(45, 60))))
    assert not multiprocessing.active_children()


def test_the_number_of_processes_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMIX_WORKERS", "two")
    with pytest.raises(ValueError, match="MATMIX_WORKERS must be a number of processes, 0 for none, got 'two'"):
        workers()


def test_chunks_hold_everything_once() -> None:
    assert list(chunks(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_progress_off_a_terminal_is_a_line_a_tenth_of_long_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 4)
    monkeypatch.setattr("sequence.data.parallel.time.monotonic", lambda: next(clock))
    with progress("reading", 40, "rows") as advance:
        for _ in range(40):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 10 and lines[-1] == "reading: 40 of 40 rows"
