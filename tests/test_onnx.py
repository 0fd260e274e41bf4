"""ONNX programs with an open batch, and an open length where the mixer has one, run by onnxruntime, give what PyTorch
gives: every mixer, and one model of each vision family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import matmix
from matmix.testing import MixerCase, factory_of
from matmix.testing.compare import close
from tests.laws import skip_if_rows_are_read
from tests.vision.families import FAMILIES, SIZE, small

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

QUICK = ("attention", "global_filter")
EXCEPTIONS = {
    ("delta_rule", "length"): "aten.linalg_solve_triangular",
}
"""(mixer or model, open axis): what its conversion fails by. Where the length is open, the delta rule is one triangle,
and ONNX has no triangular solve; a triangle of a known size is inverted by products."""
TOO_LONG = ("vim2_t", "vmamba_t_s1l8", "vmamba_v0_t")
"""Models whose conversion takes the exporter a minute and more. Those of VMamba were seen to convert, ViM2's not; the
mixers of all are converted above."""

BATCH = Dim("batch", max=1 << 12)
LENGTH = Dim("length", min=2, max=1 << 16)


def _holds(name: str, axis: str, module: nn.Module, inputs: list[Tensor]) -> None:
    """Convert on the first input, run on all; or fail as the table of exceptions says, so that the table stays true."""
    reason = EXCEPTIONS.get((name, axis))
    open_axes = {0: BATCH} if axis == "batch" else {0: BATCH, 1: LENGTH}
    torch._dynamo.reset()
    try:
        program = torch.onnx.export(module, (inputs[0],), dynamo=True, dynamic_shapes=(open_axes,), verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        if reason is None:
            raise
        assert reason in f"{error.__cause__}", f"{name} fails by another reason than {reason}: {error.__cause__}"
        return
    assert reason is None, f"{name} converts with an open {axis} now: take it out of EXCEPTIONS"
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in inputs:
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            close(torch.from_numpy(out), module(x), f"{name}, {tuple(x.shape)}", tolerance=1e-4)


def _cases(names: list[str]) -> list[object]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", _cases(matmix.list_mixers()))
def test_open_batch(name: str) -> None:
    info = matmix.mixer_info(name)
    factory, dim = factory_of(info)
    if name not in QUICK and _any_length(name) and (name, "length") not in EXCEPTIONS:
        skip_if_rows_are_read(factory, dim, "test_open_length converts this graph with an open batch too")
    case = MixerCase(factory, dim, (3, 7) if 2 in info.traits.dims else (13,), batch=3)
    inputs = [case.on(case.grid, batch).tokens(torch.float32) for batch in (3, 1, 5)]
    _holds(name, "batch", case.build(torch.float32), inputs)


def _any_length(name: str) -> bool:
    traits = matmix.mixer_info(name).traits
    return traits.length == "any" and 1 in traits.dims


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in matmix.list_mixers() if _any_length(name)])
def test_open_length(name: str) -> None:
    factory, dim = factory_of(matmix.mixer_info(name))
    case = MixerCase(factory, dim, (13,), batch=3)
    inputs = [case.on((length,), batch).tokens(torch.float32) for batch, length in ((3, 13), (1, 29), (5, 150))]
    _holds(name, "length", case.build(torch.float32), inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in TOO_LONG])
def test_vision_models(name: str) -> None:
    torch.manual_seed(0)
    model, images = small(name).eval(), torch.randn(5, 3, SIZE, SIZE)
    _holds(name, "batch", model, [images[:3], images[:1], images])
