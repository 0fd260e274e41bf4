"""When the kernels written in Triton may run, and on which device.

Their products stay off the instructions of Hopper's warp groups. The assembler that Triton brings (CUDA 12.9) may use
the registers of a tile again while such a product still reads them (triton-lang/triton, issue 11366 and pull request
11781): an H100 then gave wrong gradients, or accesses outside of shared memory, for tiles of 16 columns. Triton takes
those instructions from 64 rows and four warps on, so a product here has fewer rows or fewer warps;
tests/ops/test_kernels.py looks for them in what is compiled.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from matmix.ops.private import modes, transformed

DEVICES = {"cuda"}  # where kernels run; tests add the CPU while Triton interprets


def in_triton(*tensors: Tensor | None, transforms: bool = False) -> bool:
    """Whether there is Triton, and numbers on a CUDA device for it, none of them float64.

    Not where every operation is to be seen: under a compiler, in fake tensors, by counters; nor in ``torch.func``,
    unless the caller knows its ``transforms``.
    """
    return (
        not torch.compiler.is_compiling()
        and all(t is None or _plain(t) for t in tensors)
        and not modes()
        and (transforms or not transformed())
        and _triton_is_there()
    )


def _plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter)  # first: a tracer's stand-in answers nothing else
        and tensor.device.type in DEVICES
        and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and tensor.numel() > 0
    )


@cache
def _triton_is_there() -> bool:
    if find_spec("triton") is None:
        return False
    major, minor = version("triton").split(".")[:2]
    return (int(major), int(minor)) >= (3, 3)  # tuples inside kernels


def cdiv(a: int, b: int) -> int:
    """``ceil(a / b)``; Triton's own takes microseconds on the host."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The next power of 2, n itself included."""
    return 1 << (n - 1).bit_length()


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return nullcontext()
