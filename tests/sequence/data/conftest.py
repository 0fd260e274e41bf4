"""Each test of the readers has a cache of its own, and reads in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest

from sequence.data import aan_sets, listops_sets, reviews_sets


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMIX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MATMIX_WORKERS", "0")
    for kept in (listops_sets.from_files, reviews_sets.prepared, reviews_sets.divided, aan_sets.prepared):
        kept.cache_clear()  # one process reads a path once
