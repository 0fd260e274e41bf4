"""explain: known mixers are named rightly, errors are what they say, the model stays as it was."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from matmix import create_mixer, project, surgery
from matmix.surgery.distances import Ladder, Measurement, ladders
from sequence.encoder import Encoder, Patches

FEW = ["identity", "uniform", "equal_rows", "toeplitz", "convolution", "low_rank", "circulant"]


@pytest.fixture(scope="module")
def trained():
    """Digits after a few steps, most of them right: a convolution of 3 x 3 and attention of two heads."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    mixers = "sep_conv(expand=1, kernel=3), attention(head_dim=12)"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Encoder(
            lambda: Patches(1, 24, 1), mixers, dim=24, depth=2, grid=(8, 8), head="class", outputs=10,
            pool_norm=True, position="learned",
        )  # fmt: skip
        optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
        for _ in range(120):
            some = torch.randint(1500, (64,))
            loss = nn.functional.cross_entropy(model(x[some]), y[some])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        assert (model.eval()(x[1500:]).argmax(1) == y[1500:]).float().mean() > 0.7
    return model, x[1500:1508]


def measured(entries: torch.Tensor, classes: list[str] | None = None, grid: tuple[int, ...] | None = None, **options):
    rows, columns = entries.shape[2:]
    measurement = Measurement(entries, grid, 4, **{"tolerance": 0.05, "share": 0.25, **options})
    return measurement.run(ladders(classes, rows, columns, grid or (columns,)), lambda: None), measurement


def test_trained_kinds_are_named_and_the_model_is_untouched(trained, tmp_path):
    model, x = trained
    model.train()
    before = copy.deepcopy(model.state_dict())
    told = []
    found = surgery.explain(model, iter([x[:2], x[2:5], x[5:]]), max_heads=3, progress=told.append)
    convolution, attention = found.heads[:3], found.heads[3:]
    assert [head.name for head in convolution] == [f"blocks.0.mixer, head {n}" for n in (0, 8, 16)]
    for head in convolution:
        assert head.found is not None and head.found.spec == "convolution(kernel=3)" and head.found.parameters == 9
        assert head.fixed and head.error < 1e-5 and head.samples == 1 and head.inputs == 8 and head.grid == (8, 8)
        assert head.found.flops == head.flops == 2 * 64 * 9
    assert [head.head for head in attention] == [0, 1]
    for head in attention:
        assert not head.fixed and head.variation > 0.2 and head.samples == 8
        assert all(d.fixed_error > found.tolerance for d in head.measured.distances)
        assert head.found is None or head.found.spec.startswith("low_rank")
        torch.testing.assert_close(head.mean.sum(1), torch.ones(64))
    # The model: mode, state, gradients, methods.
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all("mix" not in module.__dict__ for module in model.modules())
    steps = [news["step"] for news in told]
    assert steps == sorted(steps) and steps[-1] == told[-1]["steps"] and len(steps) > 20
    # What it prints and writes.
    assert "blocks.0.mixer  0 to 16 (3 of 24)  convolution(kernel=3)  one for all data" in str(found)
    assert str(convolution[0]) == "blocks.0.mixer, head 0: convolution(kernel=3) to 0 %, one for all data"
    written = json.loads(found.to_json(tmp_path / "found.json"))
    assert written == json.loads((tmp_path / "found.json").read_text())
    assert written["heads"] == found.table() and written["distances"] == found.rows and len(found.rows) > 100
    assert [row["class"] for row in found.rows if row["found"]][:3] == ["convolution(kernel=3)"] * 3
    picture = found.picture(tmp_path / "found.png", max_rows=4)
    assert picture.stat().st_size > 20_000
    with pytest.raises(ValueError, match="picture format"):
        found.picture(tmp_path / "found.txt")


def test_errors_are_those_of_the_definition():
    """Over all classes: own, fixed and mean errors by brute force; an own member is never worse than a shared one."""
    torch.manual_seed(0)
    base = torch.randn(1, 2, 12, 12, dtype=torch.float64)
    entries = base + 0.4 * torch.randn(5, 2, 12, 12, dtype=torch.float64)
    results, _ = measured(entries, grid=(3, 4), share=1.0)
    mean = entries.mean(0, keepdim=True)
    size = entries.square().sum((0, 2, 3))
    for head, result in enumerate(results):
        one = entries[:, head : head + 1]
        spread = (one - mean[:, head : head + 1]).square().sum() / size[head]
        assert result.variation == pytest.approx(float(spread.sqrt()))
        for d in result.distances:
            own, shared = project(one, d.spec, grid=(3, 4)), project(mean[:, head : head + 1], d.spec, grid=(3, 4))
            assert d.error**2 == pytest.approx(float((one - own.matrix.to_dense()).square().sum() / size[head]))
            direct = float((one - shared.matrix.to_dense()).square().sum() / size[head])
            assert d.fixed_error**2 == pytest.approx(direct)
            assert d.mean_error == pytest.approx(float(shared.error)) and d.parameters == own.parameters
            assert d.error <= d.fixed_error + 1e-9 or not d.exact
    assert len({d.spec for d in results[0].distances}) > 20


def member(kind: str, samples: int = 3) -> torch.Tensor:
    """Matrices of one kind, 3 samples and one head of 24 tokens: the same for all samples, or another for each."""
    draw = torch.Generator().manual_seed(1)
    length = 24

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    if kind == "fixed rank 3":
        return (normal(1, 1, length, 3) @ normal(1, 1, 3, length)).expand(samples, -1, -1, -1)
    if kind == "rank 3":
        return normal(samples, 1, length, 3) @ normal(samples, 1, 3, length)
    if kind == "window 7":
        return (
            project(normal(1, 1, length, length), "convolution(kernel=7)").matrix.to_dense().expand(samples, -1, -1, -1)
        )
    if kind == "recurrence":
        return project(normal(samples, 1, length, length), "semiseparable(1)").matrix.to_dense()
    if kind == "decay":
        lag = torch.arange(length)[:, None] - torch.arange(length)
        return (0.9 ** lag.clamp(min=0) * (lag >= 0)).double().expand(samples, 1, -1, -1)
    if kind == "rows alike":
        return normal(samples, 1, 1, length).expand(-1, -1, length, -1)
    if kind == "fixed noise":
        return normal(1, 1, length, length).expand(samples, -1, -1, -1)
    if kind == "causal noise":
        return normal(samples, 1, length, length).tril()
    return normal(samples, 1, length, length)


@pytest.mark.parametrize(
    ("kind", "spec", "fixed"),
    [
        ("fixed rank 3", "low_rank(rank=3)", True),
        ("rank 3", "low_rank(rank=3)", False),
        ("window 7", "convolution(kernel=7)", True),
        ("recurrence", "semiseparable(order=1)", False),
        ("decay", "causal_toeplitz", True),
        ("rows alike", "equal_rows", False),
        ("fixed noise", None, True),
        ("causal noise", None, False),
        ("noise", None, False),
    ],
)
def test_the_smallest_class_is_found(kind, spec, fixed):
    """At sizes between the regular ones too; what has nearly as many free numbers as any matrix explains nothing."""
    (result,), measurement = measured(member(kind))
    assert (result.found and result.found.spec) == spec and result.fixed == fixed
    assert measurement.causal == (kind in ("recurrence", "decay", "causal noise"))
    whole = 24 * 25 / 2 if measurement.causal else 24 * 24
    assert all(d.explains == (d.parameters <= whole / 4) for d in result.distances)
    assert {"causal", "row_stochastic"} <= {d.spec for d in result.distances if not d.explains}


def test_a_larger_share_lets_larger_classes_explain():
    (small,), _ = measured(member("rank 3"), ["low_rank"], share=0.2)
    (large,), _ = measured(member("rank 3"), ["low_rank"], share=0.3)
    assert small.found is None and small.distances[-1].spec == "low_rank(rank=2)"
    assert large.found is not None and large.found.parameters == 45 * 3


def test_classes_as_they_are_written_and_rectangles():
    (result,), _ = measured(member("rank 3"), ["low_rank(4)", "banded(width=3)"])
    assert [d.spec for d in result.distances] == ["banded(width=3)", "low_rank(4)"]
    wide = torch.randn(2, 1, 6, 9)
    names = {ladder.name for ladder in ladders(None, 6, 9, (9,))}
    assert {"low_rank", "uniform", "equal_rows"} <= names and not {"toeplitz", "kron", "causal"} & names
    one, two = ({ladder.name for ladder in ladders(None, 6, 6, grid)} for grid in ((6,), (2, 3)))
    assert two - one == {"sequence_toeplitz"}  # which is toeplitz, but on images
    assert Ladder("low_rank", (1, 2)) in ladders(None, 6, 9, (9,))
    assert measured(wide)[0][0].distances


def sink(weight: float) -> nn.Module:
    """A BEiT whose attention is of positions alone: the window of 3 x 3, and nearly all weight on the class token.

    Were it not for that sink, rows at the border would be normalised otherwise, and the matrix no convolution.
    """
    from tests.surgery.models import vit

    model = vit("beit_base_patch16_224", img_size=(64, 80), depth=1).eval()
    attn = model.blocks[0].attn
    rows, columns = 4, 5
    with torch.no_grad():
        attn.qkv.weight[:48] = 0
        attn.q_bias.zero_()
        table = attn.relative_position_bias_table
        lags = torch.stack(
            torch.meshgrid(torch.arange(1 - rows, rows), torch.arange(1 - columns, columns), indexing="ij"), -1
        )
        near = (lags.abs().flatten(0, 1).max(1).values <= 1).float()
        taps = near * torch.randn(len(near), generator=torch.Generator().manual_seed(0))
        table[: len(near)] = torch.where(near > 0, taps, torch.tensor(-20.0))[:, None]
        table[len(near) :] = weight
    return model


def test_a_foreign_attention_that_is_a_convolution_behind_its_class_token():
    x = torch.randn(3, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    found = surgery.explain(sink(12.0), [x], classes=FEW)
    assert len(found.heads) == 3 and {head.site for head in found.heads} == {"blocks.0.attn"}
    for head in found.heads:
        assert head.prefix == 1 and head.grid == (4, 5) and head.tokens == 20 and head.mean.shape == (20, 20)
        assert head.found is not None and head.found.spec == "convolution(kernel=3)" and head.fixed
        assert head.error < 0.01 and head.aside > 0.99 and head.variation < 1e-3
        # 9 taps of 20 tokens, and the column and row of the class token as they are; values of 8 columns
        assert head.found.flops == 2 * 8 * (9 * 20 + 41)
    assert "set aside" in str(found)
    # Without the sink the same window is no convolution to 5 %, nor any other of these classes.
    assert surgery.explain(sink(-20.0), [x], classes=["convolution"]).heads[0].found is None


def test_what_was_put_in_is_named():
    """Replacements at both levels, and sites that are too long are told instead."""
    from tests.surgery.models import CASES, vit

    model = vit(img_size=(64, 80), depth=3)
    x = torch.randn(3, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    surgery.replace(model, "low_rank(2)", where="attn", level="matrix", layers=0)
    surgery.replace(model, "sep_conv(kernel=7)", where="attn", layers=1, prefix="aside")
    surgery.replace(model, "toeplitz", where="attn", level="matrix", layers=2)
    found = surgery.explain(model, [x], classes=[*FEW, "sequence_toeplitz"], max_heads=3)
    kinds = {head.site: (head.found and head.found.spec, head.fixed, head.prefix) for head in found.heads}
    # 7 taps are more than half of the image of 4 x 5.
    assert kinds["blocks.0.attn"] == ("low_rank(rank=2)", True, 1)
    assert kinds["blocks.1.attn"] == ("convolution(kernel=7)", True, 0)
    assert kinds["blocks.2.attn"] == ("sequence_toeplitz", True, 1)  # row by row, which is no convolution of the image
    case = CASES["convnext"]
    found = surgery.explain(case.model(), [case.input()], max_heads=1, classes=["convolution"])
    assert found.skipped == {"stages.0.blocks.0.conv_dw": "384 tokens are more than max_tokens=256"}
    assert "skipped stages.0.blocks.0.conv_dw: 384 tokens" in str(found) and len(found.heads) == 3


class Twice(nn.Module):
    """One mixer that serves two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = create_mixer("sep_conv(expand=1, kernel=3)", 4)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.mixer(self.mixer(x, mask=mask), mask=mask)


def test_calls_of_one_module_are_told_apart():
    found = surgery.explain(Twice(), [{"x": torch.randn(2, 10, 4)}], classes=FEW)
    assert list(dict.fromkeys(head.site for head in found.heads)) == ["mixer", "mixer#2"]


def test_refusals(trained):
    model, x = trained
    two = Twice()
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[0, 7:] = False
    tokens = torch.randn(2, 10, 4)
    for batches, options, message in (
        ([(tokens, mask)], {}, "mixer: batches have padding"),
        ([tokens[:1], tokens[:1, :9]], {}, r"mixer: its matrix varies in size, \(4, 10, 10\) and \(4, 9, 9\)"),
        ([tokens[:1]], {}, "mixer: batches hold 1 input"),
        (tokens, {}, "batches must be an iterable of inputs, got a tensor"),
        ([tokens], {"classes": ["toplitz"]}, "unknown class of matrices 'toplitz'.*toeplitz"),
        ([tokens], {"classes": []}, "at least one class"),
        ([tokens], {"classes": ["low_rank(40)"]}, "mixer: rank must be"),
        ([tokens], {"tolerance": 0.0}, r"tolerance must be a finite number in \(0, 1\]"),
        ([tokens], {"samples": 1}, r"samples must be a whole number in \[2, "),
        ([tokens], {"max_tokens": 9}, "no site can be explained: mixer: 10 tokens are more than max_tokens=9"),
        ([], {}, "no site can be explained: mixer: it did not run"),
        ([tokens], {"where": "attn"}, "matches no site"),
    ):
        with pytest.raises(ValueError, match=message):
            surgery.explain(two, batches, **{"classes": FEW, **options})
    with pytest.raises(ValueError, match="has no site"):
        surgery.explain(nn.Linear(2, 2), [tokens])
    for options in ({"where": "1.mixer"}, {"layers": [1]}, {"exclude": "blocks.0.mixer"}):
        found = surgery.explain(model, [x[:2]], classes=["uniform"], **options)
        assert {head.site for head in found.heads} == {"blocks.1.mixer"}
