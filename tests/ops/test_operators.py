"""Every operator: PyTorch's own checks, derivatives against float64, what transforms and counters make of it; on the
CPU, and with its kernels by Triton's interpreter. And who sees them: compilers and exporters, in every mixer."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import AotEagerAndRecordGraphs
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.flop_counter import FlopCounterMode

import matmix
import matmix.cost  # tells the counter of FLOPs
from matmix.ops import gpu, private
from matmix.ops.operator import OPERATORS, Operator
from matmix.testing import MixerCase, factory_of
from tests.ops.interpreter import interpreted
from tests.vision.families import SIZE, small

Draw = Callable[..., Tensor]
B, H, G, L, N, W = 2, 4, 2, 21, 5, 3


def _triangle(draw: Draw) -> list[Tensor]:
    """C, B, log decay and step of a triangle, of which all samples share B."""
    outputs, inputs = (draw(b, L, G, N).transpose(1, 2) for b in (B, 1))
    return [outputs, inputs, -draw(B, L, H).abs().mT, draw(B, L, H).abs().mT]


def _heads(draw: Draw) -> list[Tensor]:
    """C, B and log decay of every head."""
    outputs, inputs, log_decay = (draw(B, L, H, N).transpose(1, 2) for _ in range(3))
    return [outputs, inputs, -log_decay.abs()]


def _shared(draw: Draw) -> list[Tensor]:
    """C, B of the groups and the rates of every head, of all samples."""
    return [*_triangle(draw)[:2], -draw(1, H, 1, N).abs()]


def _clock(draw: Draw) -> Tensor:
    return draw(B, L, H).abs().mT


def _values(draw: Draw) -> Tensor:
    return draw(B, L, H, W).transpose(1, 2)


# Of each operator all forms that differ in which tensors there are.
CASES: dict[str, list[Callable[[Draw], tuple[Any, ...]]]] = {
    "ssd_scan": [
        lambda draw: (_values(draw), *_triangle(draw), draw(B, H, W, N), None, None),
        lambda draw: (_values(draw), *_triangle(draw)[:3], None, None, None, 4),
    ],
    "channel_scan": [
        lambda draw: (_values(draw), *_heads(draw), None, None),
        lambda draw: (_values(draw)[:1], *_heads(draw)[:2], -draw(1, H, L, N).abs(), None, 4),
    ],
    "diagonal_scan": [
        lambda draw: (_values(draw), *_shared(draw), _clock(draw), None, draw(B, H, W, N), True, None),
        lambda draw: (_values(draw), *_shared(draw), _clock(draw), draw(1, H, L), None, False, 4),
        lambda draw: (_values(draw), *_shared(draw)[:2], -draw(B, H, L, N).abs(), None, None, None, False, None),
    ],
    "unit_lower_solve": [
        lambda draw: (draw(B, H, L, N) / N, draw(B, H, L, N), _values(draw), False, 8),
        lambda draw: (draw(1, H, L, N) / N, draw(B, H, L, N), _values(draw), True, 64),
    ],
    "two_sided_scan": [
        lambda draw: (_values(draw), *_triangle(draw), *_triangle(draw), draw(B, H, L), None),
        lambda draw: (_values(draw), *_triangle(draw)[:3], None, *_triangle(draw), draw(1, H, L), 4),
    ],
}
FORMS = [pytest.param(name, form, id=f"{name}-{form}") for name, forms in CASES.items() for form in range(len(forms))]


def arguments(name: str, form: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Of an operator: tensors that take gradients, and options. The same numbers in every dtype."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(dtype)

    given = CASES[name][form](draw)
    args = [t.detach().requires_grad_() if isinstance(t, Tensor) else t for t in given]
    if name in ("ssd_scan", "channel_scan"):
        args[-2] = dtype  # of the outputs
    return tuple(args)


def leaves(args: tuple[Any, ...]) -> list[Tensor]:
    return [t for t in args if isinstance(t, Tensor)]


def backwards(operator: Operator, args: tuple[Any, ...], *, last: bool = False) -> tuple[Any, ...]:
    """Arguments of the operator of the gradients; of all results, or of the last one alone."""
    results = operator.reference(*args)
    d_results = [torch.randn_like(y) if not last or y is results[-1] else None for y in results]
    given = [t.detach() if isinstance(t, Tensor) else t for t in args]
    return (*d_results, *given, [isinstance(t, Tensor) for t in args[: operator.count]])


def close(got: Tensor, wanted: Tensor, what: str, limit: float = 2e-5) -> None:
    assert got.shape == wanted.shape, what
    error, size = float((got.detach() - wanted.detach()).abs().max()), float(wanted.detach().abs().max())
    assert error <= limit * max(size, 1e-3), f"{what}: off by {error:.2g} of {size:.2g}"


QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")
ALL = (*QUICK, "test_aot_dispatch_dynamic")


def passes_opcheck(name: str, form: int, utilities: tuple[str, ...] = ALL) -> None:
    operator, args = OPERATORS[name], arguments(name, form)
    torch.library.opcheck(operator.call, args, test_utils=utilities)
    torch.library.opcheck(operator.call_back, backwards(operator, args), test_utils=utilities)
    torch.library.opcheck(operator.call_back, backwards(operator, args, last=True), test_utils="test_faketensor")


def derives(name: str, form: int) -> None:
    """Results, gradients and second derivatives are those of the reference in float64."""
    operator = OPERATORS[name]
    ours, wide = arguments(name, form), arguments(name, form, torch.float64)
    found, exact = operator(*ours), operator.reference(*wide)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in exact]

    def derivatives(results: tuple[Tensor, ...], tensors: list[Tensor]) -> list[tuple[Tensor, ...]]:
        total = sum((y * w.to(y.dtype)).sum() for y, w in zip(results, weights, strict=True))
        first = torch.autograd.grad(total, tensors, retain_graph=True)  # by the operator
        again = torch.autograd.grad(total, tensors, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in again), tensors)  # type: ignore[arg-type]
        return [first, again, second]

    for index, (y, x) in enumerate(zip(found, exact, strict=True)):
        close(y, x, f"result {index} of {name}")
    for order, mine, theirs in zip(
        (1, 1, 2), *(derivatives(*pair) for pair in ((found, leaves(ours)), (exact, leaves(wide)))), strict=True
    ):
        for index, (g, x) in enumerate(zip(mine, theirs, strict=True)):
            close(g, x, f"derivative {order} of {name} by tensor {index}", 1e-4 if order == 1 else 1e-3)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_opcheck(name: str, form: int) -> None:
    passes_opcheck(name, form, QUICK)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_results_of_open_sizes_lie_as_they_will(name: str, form: int) -> None:
    """Compiled programs ask for the strides that they were told, where the compiler knows no sizes too."""
    operator, args = OPERATORS[name], arguments(name, form)
    back = backwards(operator, args)
    for call, given in ((operator.call, args), (operator.call_back, back)):
        mode = FakeTensorMode(shape_env=ShapeEnv())
        open_sizes = [mode.from_tensor(t.detach()) if isinstance(t, Tensor) else t for t in given]
        with mode:
            told = call(*open_sizes)
        real = call(*(t.detach() if isinstance(t, Tensor) else t for t in given))
        for one, other in zip(*(x if isinstance(x, list | tuple) else (x,) for x in (told, real)), strict=True):
            steps = zip(other.shape, one.stride(), other.stride(), strict=True)
            assert all(int(said) == step for size, said, step in steps if size > 1), (one.stride(), other.stride())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_opcheck_of_traces(name: str, form: int) -> None:
    passes_opcheck(name, form)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_derivatives(name: str, form: int) -> None:
    derives(name, form)


def test_every_operator_has_a_case() -> None:
    assert set(CASES) == set(OPERATORS)


@pytest.mark.slow
def test_interpreted() -> None:
    """The same with the kernels."""
    assert interpreted("tests.ops.test_operators").count("holds") == len(FORMS)


@pytest.mark.parametrize("name", CASES)
def test_flops_are_those_of_the_reference(name: str) -> None:
    operator, args = OPERATORS[name], arguments(name, 0)
    back = backwards(operator, args)

    def counted(work: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    ahead = counted(lambda: operator.reference(*args))
    both = counted(lambda: torch.autograd.grad(operator.reference(*args), leaves(args), back[: operator.results]))
    assert counted(lambda: operator(*args)) == ahead
    assert counted(lambda: operator.call_back(*back)) == both - ahead


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("own", ["all", "first", "weights"])
def test_vmap(name: str, own: str) -> None:
    """Three calls at once are three calls, with all tensors mapped, the first one alone, or all but the first."""
    operator, args = OPERATORS[name], arguments(name, 0)
    tensors = leaves(args)
    mapped = {"all": tensors, "first": tensors[:1], "weights": tensors[1:]}[own]
    dims = tuple(1 if any(t is one for one in mapped) else None for t in args)
    three = tuple(torch.stack([t, 2 * t, t / 2], 1) if dim == 1 else t for t, dim in zip(args, dims, strict=True))

    def of(index: int) -> tuple[Any, ...]:
        return tuple(t.select(1, index) if dim == 1 else t for t, dim in zip(three, dims, strict=True))

    together = torch.vmap(operator, in_dims=dims)(*three)
    for index in range(3):
        for one, other in zip(together, operator(*of(index)), strict=True):
            torch.testing.assert_close(one[index], other)
    gradients = [None if dim is None else 1 for dim in dims]
    wanted = [isinstance(t, Tensor) for t in args[: operator.count]]
    d_results = [torch.randn(3, *y.shape, dtype=y.dtype) for y in operator.reference(*args)]
    back_dims = (*[0] * operator.results, *gradients)
    back = torch.vmap(lambda *all: operator.call_back(*all, wanted), in_dims=back_dims)(*d_results, *three)
    for index in range(3):
        alone = operator.call_back(*(d[index] for d in d_results), *of(index), wanted)
        for one, other in zip(back, alone, strict=True):
            torch.testing.assert_close(one[index], other)


# ------------------------------------------------------------------ who sees them

MIXERS = {
    "ssd": ["ssd_scan"],
    "gla": ["channel_scan"],
    "s6": ["diagonal_scan"],
    "delta_rule": ["unit_lower_solve", "ssd_scan"],
    "hydra": ["two_sided_scan"],
}
QUICKLY = [name if name == "hydra" else pytest.param(name, marks=pytest.mark.slow) for name in MIXERS]


def built(name: str, grid: tuple[int, ...] = (13,)) -> tuple[nn.Module, Tensor]:
    factory, dim = factory_of(matmix.mixer_info(name))
    case = MixerCase(factory, dim, grid, batch=3)
    return case.build(torch.float32), case.tokens(torch.float32)


def named(graphs: list[torch.fx.GraphModule]) -> list[str]:
    return [str(n.target).split(".")[1] for g in graphs for n in g.graph.nodes if str(n.target).startswith("matmix.")]


def equals_eager(model: nn.Module, x: Tensor, expected: list[str]) -> None:
    """Compiled whole, outputs and gradients are those of eager mode, and the graphs hold the operators."""
    torch._dynamo.reset()
    graphs = AotEagerAndRecordGraphs()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)

    def passed(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        tokens = x.detach().requires_grad_()
        out = run(tokens)
        inputs = [tokens, *(p for p in model.parameters() if p.requires_grad)]
        return [out, *torch.autograd.grad((out * out.detach().cos()).sum(), inputs, materialize_grads=True)]

    for one, other in zip(passed(compiled), passed(model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(other.detach().abs().max()) + 1e-7)
    assert named(graphs.fw_graphs) == expected
    assert sorted(named(graphs.bw_graphs)) == sorted(f"{name}_backward" for name in expected)


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("name", MIXERS)
def test_compiled_mixers_keep_them(name: str) -> None:
    equals_eager(*built(name), MIXERS[name])


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.slow
def test_a_compiled_model_keeps_them() -> None:
    torch.manual_seed(0)
    model = small("hydra_vit_b").eval()
    count = sum(type(module).__name__ == "Hydra" for module in model.modules())
    assert count
    equals_eager(model, torch.randn(2, 3, SIZE, SIZE), ["two_sided_scan"] * count)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICKLY)
def test_exported_programs_hold_them(name: str) -> None:
    """Saved and loaded, with an open batch and length; and decomposed to PyTorch's own, they give the same."""
    mixer, x = built(name)
    axes = {0: Dim("batch", max=1 << 12), 1: Dim("length", min=2, max=1 << 16)}
    program, file = torch.export.export(mixer.eval(), (x,), dynamic_shapes=(axes,)), io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert named([loaded.graph_module]) == MIXERS[name]
    table = torch.export.default_decompositions()
    table.update({OPERATORS[one].call.default: OPERATORS[one].decomposed for one in MIXERS[name]})
    plain = loaded.run_decompositions(table)
    assert named([plain.graph_module]) == []
    for tokens in (x, torch.randn(2, 70, x.shape[2])):
        for each in (loaded, plain):
            torch.testing.assert_close(each.module()(tokens), mixer(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("linear_attention(causal=True)", "ssd_scan"),
        ("retention", "ssd_scan"),
        ("mamba3", "ssd_scan"),
        ("vim", "diagonal_scan"),
        ("ss2d", "diagonal_scan"),
    ],
)
def test_other_mixers_have_them_too(spec: str, expected: str) -> None:
    """Those that docs/compile-and-export.md names beside ``MIXERS``."""
    mixer = matmix.create_mixer(spec, dim=32, grid=(4, 4) if spec == "ss2d" else (16,)).eval()
    program = torch.export.export(mixer, (torch.randn(2, 16, 32),))
    assert set(named([program.graph_module])) == {expected}


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
def test_onnx_takes_exported_programs(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    mixer, x = built(name)
    program = torch.export.export(mixer.eval(), (x,), dynamic_shapes=({0: Dim("batch", max=1 << 12)},))
    converted = torch.onnx.export(program, (x,), dynamo=True, verbose=False)
    assert converted is not None
    session = onnxruntime.InferenceSession(
        converted.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for tokens in (x, x[:1]):
        (out,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), mixer(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hydra", "ssd"])  # Dynamo traces a vmap or jvp of the others' parts no further
def test_transforms_of_compiled_mixers(name: str) -> None:
    """``torch.func`` under a compiler goes through the reference, which has all rules."""
    mixer, x = built(name)
    tangent = torch.randn_like(x)

    def transforms(x: Tensor) -> tuple[Tensor, ...]:
        gradient = torch.func.grad(lambda tokens: mixer(tokens).square().sum())(x)
        out, slope = torch.func.jvp(mixer, (x,), (tangent,))
        return gradient, out, slope, torch.vmap(mixer)(torch.stack([x, 2 * x]))

    torch._dynamo.reset()
    compiled = torch.compile(transforms, backend="eager", fullgraph=True)
    for one, other in zip(compiled(x), transforms(x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_gradients_in_a_thread() -> None:
    """The public way to what PyTorch's guards give."""
    operator, args = OPERATORS["ssd_scan"], arguments("ssd_scan", 0)
    back = backwards(operator, args)
    wanted = operator.call_back(*back)
    with patch.object(private, "AROUND", ("no such name",)):
        for one, other in zip(operator.call_back(*back), wanted, strict=True):
            assert torch.equal(one, other)


if __name__ == "__main__":
    gpu.DEVICES.add("cpu")
    torch.set_num_threads(1)
    for each, forms in CASES.items():
        for number in range(len(forms)):
            with patch.object(OPERATORS[each], "kernel", wraps=OPERATORS[each].kernel) as kernel:
                passes_opcheck(each, number)
                derives(each, number)
            assert kernel.called
            print(each, number, "holds", flush=True)
