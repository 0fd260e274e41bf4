"""PyTorch's private core is used in one module, and without it kernels and shortcuts step aside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from matmix.ops import private

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(
    r"torch\._C\b|torch\._functorch\b|torch\._decomp\b|forward_ad\._|import _get_current_dispatch_mode"
)
LACKING = """
import math, torch
names = ("_are_functorch_transforms_active", "_len_torch_dispatch_stack", "_dispatch_keys")
kept = {name: torch._C.__dict__[name] for name in names}
for name in names:
    delattr(torch._C, name)
from matmix.ops import private
for name, function in kept.items():  # PyTorch itself goes on with them
    setattr(torch._C, name, function)
import matmix
from matmix.ops import activations, function
assert private.transformed() and private.modes() and private.taken_together(torch.ones(1))
assert not activations.plain_numbers(torch.ones(1)) and not function.differentiated_once(torch.ones(1))
for name, grid in {"hydra": (5,), "s6": (5,), "delta_rule": (5,), "sep_conv": (3, 5)}.items():
    mixer = matmix.create_mixer(name, dim=8, grid=grid)
    mixer(torch.randn(2, math.prod(grid), 8)).sum().backward()
    assert all(p.grad is not None for p in mixer.parameters())
print("holds")
"""


def test_one_module_uses_it() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in ("matmix", "vision", "sequence")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != ROOT / "matmix" / "ops" / "private.py"
        for line in path.read_text().splitlines()
        if PRIVATE.search(line)
    ]
    assert not found, "\n".join(found)


def test_mixers_run_without_it() -> None:
    done = subprocess.run([sys.executable, "-c", LACKING], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "holds\n", done.stderr[-2000:]


def test_answers() -> None:
    seen: list[tuple[bool, bool, bool]] = []

    def look(x: Tensor) -> Tensor:
        seen.append((bool(private.transformed()), private.in_forward_mode(), private.taken_together(x)))
        return x.sin()

    class Looked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return look(gradient)

    look(torch.ones(2))
    torch.vmap(look)(torch.ones(2))
    torch.func.grad(lambda x: look(x).sum())(torch.ones(2))
    torch.func.jvp(look, (torch.ones(2),), (torch.ones(2),))
    x = torch.ones(2, requires_grad=True)
    torch.autograd.grad(Looked.apply(x), x, torch.eye(2), is_grads_batched=True)  # type: ignore[no-untyped-call]
    no, yes = False, True
    assert seen == [(no, no, no), (yes, no, no), (yes, no, no), (yes, yes, no), (no, no, yes)]
