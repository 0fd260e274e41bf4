"""How many kernels a mixer launches, forward and backward: a launch costs 20 to 40 us of Python on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch

import matmix
from matmix.ops import gpu
from matmix.testing import MixerCase, factory_of

pytest.importorskip("triton")

# Of Triton's kernels, at most: forward, and backward with gradients of all parameters and tokens.
MOST = {
    "ssd": (5, 9),
    "hydra": (8, 14),
    "gla": (4, 7),
    "s6": (4, 6),
    "delta_rule": (6, 11),
}


@contextmanager
def launches() -> Iterator[list[str]]:
    """The names of the kernels that are launched meanwhile, none of which runs; the CPU counts as a GPU."""
    from triton.runtime.jit import JITFunction

    names: list[str] = []

    def launch(self: Any, *args: Any, **options: Any) -> None:
        names.append(self.__name__)

    with patch.object(JITFunction, "run", launch), patch.object(gpu, "DEVICES", {"cuda", "cpu"}):
        yield names


@pytest.mark.parametrize("name", MOST)
def test_launches(name: str) -> None:
    factory, dim = factory_of(matmix.mixer_info(name))
    case = MixerCase(factory, dim, (150,), batch=2)
    mixer, tokens = case.build(torch.float32), case.tokens(torch.float32).requires_grad_()
    with launches() as names:
        out = mixer(tokens)
        ahead = list(names)
        out.sum().backward()
    back = names[len(ahead) :]
    assert ahead and back
    assert (len(ahead), len(back)) <= MOST[name], (ahead, back)
