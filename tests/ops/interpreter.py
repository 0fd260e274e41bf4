"""Kernels by Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def interpreted(module: str, *arguments: str) -> str:
    """What a test module prints when it is run as a program there; Triton decides at its import whether it interprets,
    so a process of its own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
