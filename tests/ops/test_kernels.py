"""What Triton makes of the kernels for a Hopper GPU, compiled without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SIZES = [(16, 16), (128, 64)]  # states, width


@pytest.mark.slow
def test_no_products_of_warp_groups() -> None:
    """See matmix.ops.gpu. A process of its own: the driver is a stand-in."""
    pytest.importorskip("triton")
    command = [sys.executable, "-W", "ignore", "-m", "tests.ops.test_kernels"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [line.split() for line in run.stdout.splitlines()]
    scans = {"_states", "_outputs", "_d_values", "_d_factors", "_chunks", "_solve"}
    assert {name for name, *_ in lines} >= scans | {"_convolve", "_d_kernel"}
    assert not [line for line in lines if "wgmma" in line]
    assert sum("mma" in line for line in lines) >= 10  # they are products of tensor cores


def launches(work: Callable[[], object]) -> list[Callable[[], tuple[str, str]]]:
    """Run work whose kernels are not launched; what compiles each of them, to its name and its PTX."""
    from triton.runtime.jit import JITFunction

    found = []

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append(lambda: (self.__name__, real(self, *args, grid=grid, warmup=True, **options).asm["ptx"]))

    real = JITFunction.run
    JITFunction.run = launch
    try:
        work()
    finally:
        JITFunction.run = real
    return found


class Driver:
    """A Hopper GPU to compile for."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def products(states: int, width: int) -> None:
    """Forward and backward of all kernels that multiply tiles."""
    from matmix.ops import channel_scan_triton, scan_triton, unit_lower_triton

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(1, 2, 128, *sizes, requires_grad=True)

    for dtype in (torch.float32, torch.bfloat16):
        values, outputs, inputs = (t.to(dtype) for t in (draw(width), draw(states), draw(states)))
        results = [
            scan_triton.scan(values, outputs, inputs, draw(), draw())[0],
            channel_scan_triton.scan(values, outputs, inputs, draw(states))[0],
        ]
        if dtype == torch.float32:
            results.append(unit_lower_triton.solve(outputs, inputs, values))
        sum(result.float().sum() for result in results).backward()  # type: ignore[union-attr]


def convolutions() -> None:
    """Depthwise, ahead and back, from a part of a wider memory."""
    from matmix.ops import depthwise_triton

    for dtype, size in ((torch.float32, (1, 4)), (torch.bfloat16, (3, 3))):
        image = torch.randn(2, 8, 8, 256, dtype=dtype).permute(0, 3, 1, 2)[:, 128:].requires_grad_()
        kernel, bias = (torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((128, 1, *size), (128,)))
        depthwise_triton.convolve(image, kernel, bias, (0, 1), silu=True).float().sum().backward()


def main() -> None:
    import triton

    triton.runtime.driver.set_active(Driver())  # type: ignore[arg-type]
    todo = [compile for size in SIZES for compile in launches(lambda size=size: products(*size))]  # type: ignore[misc]
    todo += launches(convolutions)
    with ThreadPoolExecutor(2) as pool:
        for name, ptx in pool.map(lambda compile: compile(), todo):
            print(name, *sorted(set(re.findall(r"wgmma|(?<!wg)mma(?=\.sync)", ptx))))


if __name__ == "__main__":
    main()
