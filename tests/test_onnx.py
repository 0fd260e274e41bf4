"""ONNX programs with an open batch, run by onnxruntime, give what PyTorch gives."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim

import matmix
from matmix.testing import MixerCase, factory_of
from matmix.testing.compare import close

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

QUICK = ("attention", "global_filter")
CONVERTED = (
    *QUICK, "aff", "afno", "channels", "dense", "dynamic_filter", "ffnified", "gla", "heads", "hydra", "identity",
)  # fmt: skip
"""Attention, tables, scans by chunks, and filters by FFT with static and with dynamic spectra."""


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CONVERTED])
def test_onnxruntime_gives_the_same(name: str) -> None:
    info = matmix.mixer_info(name)
    factory, dim = factory_of(info)
    case = MixerCase(factory, dim, (3, 7) if 2 in info.traits.dims else (13,), batch=3)
    mixer, tokens = case.build(torch.float32), case.tokens(torch.float32)
    torch._dynamo.reset()
    program = torch.onnx.export(mixer, (tokens,), dynamo=True, dynamic_shapes={"x": {0: Dim("batch")}}, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (3, 1, 5):
        tokens = case.on(case.grid, batch).tokens(torch.float32, name="others")
        (out,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
        close(torch.from_numpy(out), mixer(tokens), f"{name}, batch of {batch}", tolerance=1e-4)
