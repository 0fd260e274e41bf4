"""What a result was measured with: versions, machine, command."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Versions of all packages that take part, the source revision, machine, threads and the command line."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "versions": {name: found for name in _packages() if (found := _version(name))},
        "revision": _revision(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def on_cpu() -> bool:
    """Whether to train on the CPU: there is nothing else, or `ACCELERATE_USE_CPU` asks for it."""
    return not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")


def is_main_process() -> bool:
    """True in the process that writes; under `torchrun` or `accelerate launch` that is rank 0."""
    from accelerate import PartialState

    return PartialState(cpu=on_cpu()).is_main_process


@cache
def _packages() -> list[str]:
    """matmix and all that it asks for, in any extra but those of its development."""
    try:
        lines = requires("matmix") or []
    except PackageNotFoundError:  # a checkout that was never installed
        lines = []
    names = [re.split(r"[^\w.-]", line)[0] for line in lines if not re.search("extra.*(dev|docs)", line)]
    return list(dict.fromkeys(["matmix", "torch", *names]))


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _revision() -> str | None:
    """Commit of the checkout that the code runs from; "-dirty" marks changed files; None outside of a checkout."""
    here = Path(__file__).resolve().parent
    try:
        top = subprocess.run(
            ["git", "-C", here, "rev-parse", "--show-toplevel"], capture_output=True, text=True, timeout=10
        )
        # A package installed inside of somebody else's checkout is not that checkout.
        if top.returncode or not here.samefile(Path(top.stdout.strip(), "matmix", "experiments")):
            return None
        done = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@cache
def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
