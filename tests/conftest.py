"""One thread a test process: the tests run in as many processes as there are cores."""

import os
from collections.abc import Iterator

import pytest

# Before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _a_sound_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """After an illegal access of a kernel every call to the device fails: the process ends, xdist starts another."""
    if request.node.get_closest_marker("gpu"):
        import torch

        if torch.cuda.is_available():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                os._exit(1)
    yield
