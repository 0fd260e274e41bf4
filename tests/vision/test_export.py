"""Image models are exported with an open batch."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

from matmix.testing.compare import close
from tests.vision.families import FAMILIES, SIZE, small

QUICK = ("gfnet_ti",)  # scans take the exporter many seconds


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_one_program_serves_every_batch(name: str) -> None:
    torch.manual_seed(0)
    model, images = small(name).eval(), torch.randn(5, 3, SIZE, SIZE)
    torch._dynamo.reset()
    program = torch.export.export(model, (images[:3],), dynamic_shapes=({0: Dim("batch", max=1 << 10)},)).module()
    with torch.no_grad():
        for batch in (1, 3, 5):
            close(program(images[:batch]), model(images[:batch]), f"{name}, batch of {batch}")
