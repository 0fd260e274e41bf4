"""What a replacement keeps, what is refused before anything changes, and every way back."""

from __future__ import annotations

import gc
import io
import itertools
import sys
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from matmix import create_mixer, surgery
from matmix.adapters import Replacement
from matmix.cost import count
from matmix.experiments import Recipe
from matmix.experiments.optimizer import new_optimizer
from matmix.inspect import record
from matmix.matrices import Dense
from matmix.mixers.s4d import S4DKernel
from matmix.surgery.changes import Change
from matmix.surgery.dead import dead_parameters
from tests.surgery.models import ATTN, CASES, VERSION, vit

VIT = CASES["vit"]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------ what is kept


@pytest.mark.parametrize(("level", "spec"), [("module", "hydra(expand=1)"), ("matrix", "dense")])
def test_dtype_mode_and_frozen_weights_are_kept(level, spec):
    model = VIT.model(torch.bfloat16).train()
    model.blocks[0].eval()
    model.blocks[1].attn.requires_grad_(False)
    report = surgery.replace(model, spec, level=level)
    first, second = (row.part for row in report.rows)
    assert all(p.dtype == torch.bfloat16 for row in report.rows for p in row.part.parameters())
    assert not first.training and second.training
    assert all(p.requires_grad for p in first.parameters()) and not any(p.requires_grad for p in second.parameters())
    assert report.rows[1].notes[0] == "frozen, as what it replaces" and "frozen" in str(report)
    model.eval()
    report.restore()
    assert not any(module.training for module in model.modules())


def test_hooks_stay_and_their_handles_remove_them():
    model, x, seen = VIT.model(), VIT.input(), []
    attn = model.blocks[0].attn
    handles = [
        attn.register_forward_hook(lambda *_: seen.append("after")),
        attn.register_forward_pre_hook(lambda module, args, kwargs: seen.append("before"), with_kwargs=True),
        attn.register_full_backward_hook(lambda *_: seen.append("back")),
    ]
    report = surgery.replace(model, "ssd", where="blocks.0.attn")
    model(x).sum().backward()
    assert seen == ["before", "after", "back"]
    handles[0].remove()
    seen.clear()
    report.restore()
    model(x)
    assert seen == ["before"]


class Twice(nn.Module):
    """One attention under three names, in two owners, one of which has two names itself."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"attn": vit().blocks[0].attn})
        self.again = self.block
        self.last = self.block["attn"]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again["attn"](self.block["attn"](x)))


@pytest.mark.parametrize(("level", "spec"), [("module", "ssd"), ("matrix", "linear")])
def test_a_module_of_several_names_stays_one(level, spec):
    model, x = Twice(), torch.randn(3, 7, 24)
    before, old, expected = state(model), model.last, model(x)
    (site,) = surgery.find(model, example=x)
    assert site.names == ("block.attn", "again.attn", "last") and site.calls == 3
    report = surgery.replace(model, spec, where="last", level=level)
    assert model.last is model.block["attn"] is model.again["attn"]
    assert (model.last is old) == (level == "matrix")
    report.restore()
    assert model.last is model.block["attn"] is old and same(state(model), before) and torch.equal(model(x), expected)


def test_mixers_of_ours_are_sites_too():
    model = nn.ModuleDict({"a": create_mixer("hydra(expand=1)", 8, (2, 3)), "b": create_mixer("attention", 8)})
    model["c"] = model["b"]
    before, x = state(model), torch.randn(3, 6, 8)
    assert [site.kind for site in surgery.find(model)] == ["mixer", "mixer"]
    report = surgery.replace(model, {"a": "dense", "b": "ssd"})
    assert type(model["a"]).__name__ == "Dense" and model["a"].grid == (2, 3) and model["c"] is model["b"]
    assert model["a"](x, grid=(2, 3)).shape == x.shape and [row.old_class for row in report.rows] == [
        "Hydra",
        "Attention",
    ]
    report.restore()
    assert same(state(model), before) and model["c"] is model["b"]
    with pytest.raises(ValueError, match="a: cannot be replaced at level='matrix': a mixer of matmix goes as a whole"):
        surgery.replace(model, "dense", level="matrix")
    with pytest.raises(ValueError, match="the model is itself the site"):
        surgery.replace(model["a"], "identity")


def test_draws_hang_on_seed_and_name_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    both, one, other = VIT.model(), VIT.model(), VIT.model()
    surgery.replace(both, "ssd")
    surgery.replace(one, "ssd", where="blocks.1.attn")
    surgery.replace(other, "ssd", where="blocks.1.attn", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    states = [state(model.blocks[1]) for model in (both, one, other)]
    assert same(states[0], states[1]) and not same(states[1], states[2])
    assert not same(state(both.blocks[0].attn), state(both.blocks[1].attn))


def test_the_optimizer_exchanges_parameters_and_state():
    model, x = VIT.model(), VIT.input()
    named = list(model.named_parameters())
    wide, rest = [p for _, p in named if p.dim() > 1], [p for _, p in named if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": wide, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}])

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    before, weights = optimizer.state_dict(), state(model)
    before = {**before, "state": {k: {n: t.clone() for n, t in s.items()} for k, s in before["state"].items()}}
    report = surgery.replace(model, "hydra(expand=1)", where="blocks.0.attn", optimizer=optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()} and len(held) == len(set(map(id, held)))
    assert set(map(id, optimizer.state)) <= set(map(id, held))
    mixer = model.blocks[0].attn.mixer
    light = {id(p) for p in optimizer.param_groups[1]["params"]}
    assert {id(mixer.A_log), id(mixer.D), id(mixer.dt_bias)} <= light and id(mixer.in_proj.weight) not in light
    drawn = state(mixer)
    step()
    assert not any(torch.equal(drawn[name], tensor) for name, tensor in mixer.named_parameters())
    report.restore()
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in (*wide, *rest)]
    attn = [at for at, p in enumerate(held) if any(p is q for q in model.blocks[0].attn.parameters())]
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[at][key], before["state"][at][key]) for at in attn for key in after[at])
    assert same(state(model.blocks[0].attn), {k[14:]: v for k, v in weights.items() if k.startswith("blocks.0.attn.")})


@pytest.mark.parametrize("decayed", ["matrices", "unmarked"])
def test_what_has_a_rate_or_decay_of_its_own_has_it_as_in_the_trainer(decayed, monkeypatch):
    own = {"log_dt": {"lr": 1e-3, "weight_decay": 0.0}, "C": {"lr": 1e-3}, "A_imag": {"lr": 1e-3, "weight_decay": 0.0}}
    monkeypatch.setattr(S4DKernel, "optim_settings", own, raising=False)
    recipe, model = Recipe(lr=4e-3, weight_decay=0.1, decayed=decayed), VIT.model()

    def settings(optimizer: torch.optim.Optimizer) -> dict[int, tuple[float, float]]:
        found = [(id(p), (g["lr"], g["weight_decay"])) for g in optimizer.param_groups for p in g["params"]]
        assert len(found) == len(dict(found))
        return dict(found)

    optimizer = new_optimizer(model, recipe)
    before = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    reports = [
        surgery.replace(model, "s4d(causal=False)", where=f"blocks.{at}.attn", optimizer=optimizer) for at in (0, 1)
    ]
    fresh = new_optimizer(model, recipe)
    assert settings(optimizer) == settings(fresh) and len(optimizer.param_groups) == len(fresh.param_groups)
    assert {(1e-3, 0.0), (1e-3, 0.1), (4e-3, 0.1), (4e-3, 0.0)} == set(settings(optimizer).values())
    for group in optimizer.param_groups:  # a schedule half way down: the ratio of the rates stays
        group["initial_lr"] = group.get("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] / 2
    reports[0].restore()
    again = surgery.replace(model, "s4d(causal=False)", where="blocks.0.attn", optimizer=optimizer, seed=1)
    fresh = settings(new_optimizer(model, recipe))
    assert settings(optimizer) == {p: (lr / 2, decay) for p, (lr, decay) in fresh.items()}
    reports[1].restore(), again.restore()
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == before


def test_a_weight_that_others_hold_stays_in_the_optimizer():
    model = VIT.model()
    model.blocks[1].attn.proj.weight = model.blocks[0].attn.proj.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    surgery.replace(model, "identity", where="blocks.0.attn", optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


# ------------------------------------------------------------------ the way back


def test_reports_are_taken_back_in_any_order():
    x = VIT.input()
    steps = [
        ("ssd", "module"),
        ("dense", "matrix"),
        ("linear", "matrix"),
        ("identity", "module"),
        ("uniform", "module"),
    ]
    orders = [steps[:1], steps[1:3], steps[1:4], steps[3:]]
    for chosen in orders:
        for order in itertools.permutations(range(len(chosen))):
            model = VIT.model()
            before, expected, classes = state(model), model(x), [type(m) for m in model.modules()]
            optimizer = torch.optim.AdamW(model.parameters())
            held = [id(p) for p in optimizer.param_groups[0]["params"]]
            options = {"where": "0.attn", "optimizer": optimizer}
            reports = [surgery.replace(model, spec, level=level, **options) for spec, level in chosen]
            for at in order:
                reports[at].restore()
                model(x)
                assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
            reports[0].restore()  # a second time does nothing
            assert same(state(model), before) and [type(m) for m in model.modules()] == classes, order
            assert torch.equal(model(x), expected)
            assert [id(p) for p in optimizer.param_groups[0]["params"]] == held


def test_a_report_that_is_dropped_leaves_nothing_behind():
    model = VIT.model()
    first = surgery.replace(model, "identity", where="0.attn")
    surgery.replace(model, "zero", where="0.attn")  # nobody keeps this report, and the first can still be taken back
    surgery.replace(model, "dense", where="1.attn", level="matrix")
    first.restore()
    assert type(model.blocks[0].attn.mixer).__name__ == "Zero"
    gone = [weakref.ref(model), weakref.ref(first.rows[0].old), weakref.ref(model.blocks[1].attn)]
    del model, first
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


def test_what_was_put_on_top_stays():
    model, x = VIT.model(), VIT.input()
    first = surgery.replace(model, "ssd", where="0.attn")
    second = surgery.replace(model, "identity", where="0.attn")
    top, shown = model.blocks[0].attn, model(x)
    first.restore()
    assert model.blocks[0].attn is top and torch.equal(model(x), shown)
    second.restore()
    assert type(model.blocks[0].attn).__name__ == "Attention"


def test_somebody_elses_module_is_not_thrown_away():
    model = VIT.model()
    report = surgery.replace(model, "ssd")
    mine = model.blocks[1].attn = nn.Identity()
    now = model.blocks[0].attn
    with pytest.raises(ValueError, match="cannot restore 'attn': it holds a module that was not put there"):
        report.restore()
    assert model.blocks[1].attn is mine and model.blocks[0].attn is now


def test_an_error_in_the_middle_leaves_the_model_as_it_was(monkeypatch):
    model, x = VIT.model(), VIT.input()
    before, expected = state(model), model(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    held = [id(p) for p in optimizer.param_groups[0]["params"]]
    whole, calls = Change.apply, []

    def failing(change: Change) -> None:
        calls.append(change)
        whole(change)
        if len(calls) == 2:
            raise RuntimeError("on purpose")

    monkeypatch.setattr(Change, "apply", failing)
    for level, spec in (("module", "ssd"), ("matrix", "dense")):
        calls.clear()
        with pytest.raises(RuntimeError, match="on purpose"):
            surgery.replace(model, spec, level=level, optimizer=optimizer)
        assert len(calls) == 2 and same(state(model), before) and torch.equal(model(x), expected)
        assert [id(p) for p in optimizer.param_groups[0]["params"]] == held


# ------------------------------------------------------------------ what is refused, before anything changes


def wrapped(kind: str) -> nn.Module:
    model = VIT.model()
    if kind == "compile":
        return torch.compile(model)
    if kind == "compiled part":
        model.blocks[1].compile(backend="eager")
        return model
    if kind == "script":
        return nn.Sequential(torch.jit.script(nn.Linear(2, 2)), model)
    if kind == "fsdp":
        from torch.distributed.fsdp import FullyShardedDataParallel as cls
    else:
        cls = {"ddp": nn.parallel.DistributedDataParallel, "dp": nn.parallel.DataParallel}[kind]
    outer = cls.__new__(cls)  # a process group is no part of the question
    nn.Module.__init__(outer)
    outer.module = model
    return outer


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("compile", r"the model is compiled: operate on model\._orig_mod"),
        ("compiled part", r"blocks\.1 is compiled by \.compile\(\)"),
        ("script", "0 is scripted"),
        ("ddp", r"wrapped in DistributedDataParallel: operate on model\.module"),
        ("dp", r"wrapped in DataParallel: operate on model\.module"),
        ("fsdp", r"sharded by FSDP \(FullyShardedDataParallel\): operate on the model before it is sharded"),
    ],
)
def test_wrapped_models_are_refused_with_advice(kind, advice):
    with pytest.raises(ValueError, match=advice):
        surgery.replace(wrapped(kind), "identity")


@pytest.mark.parametrize(
    ("case", "spec", "options", "message"),
    [
        ("caformer", "dense", {}, r"stages.0.blocks.0.token_mixer: Dense .*not known before a run: give example="),
        ("caformer", "dense", {"level": "matrix", "where": "self_attention"}, "not known before a run: give example="),
        ("dinov3", "dense", {"level": "matrix"}, "blocks.0.attn: 'dense' has a fixed length"),
        ("convnext", "softmax", {"level": "matrix"}, "at level='matrix': a convolution has no queries"),
        ("vit", "hydro", {}, "unknown mixer 'hydro'; did you mean hydra"),
        ("vit", "dens", {"level": "matrix"}, "unknown structure 'dens' of level='matrix'; did you mean dense"),
        ("vit", "hydra(expnd=1)", {}, "blocks.0.attn: hydra has no option 'expnd'"),
        ("vit", "low_rank(rnk=1)", {"level": "matrix"}, "low_rank has no option 'rnk'"),
        ("vit", "low_rank", {"level": "matrix"}, "blocks.0.attn: low_rank needs rank="),
        ("vit", "monarch(causal=True)", {"level": "matrix"}, "blocks.0.attn: the site is causal|cannot be"),
        ("vit", "ssd, hydra", {}, "blocks.0.attn: spec 'ssd, hydra' names 2 mixers"),
        ("vit", "ssd", {"level": "both"}, "level must be one of 'module', 'matrix', got 'both'"),
        ("vit", "ssd", {"init": "old"}, "init must be one of 'fresh', 'projected', got 'old'"),
        ("vit", "ssd", {"prefix": "gone"}, "prefix must be one of 'joined', 'aside'"),
        ("vit", {"attn": "ssd", "0.attn": "hydra"}, {}, "blocks.0.attn: two patterns"),
        ("vit", {"attn": "ssd", "mlp": "hydra"}, {}, "'mlp' matches no site"),
        ("vit", "mean_matrix(heads=3)", {}, "blocks.0.attn: mean_matrix is the average .* give batches="),
        ("vit", "ssd", {"batches": []}, "batches= is for the spec mean_matrix"),
        ("vit", "mean_matrix", {"batches": [VIT.input()]}, r"for matrices \(1, 7, 7\), the old ones are \(3, 7, 7\)"),
        ("vit", "mean_matrix(heads=3)", {"batches": []}, "no batch reached blocks.0.attn"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(case, spec, options, message):
    model = CASES[case].model()
    before, modules = state(model), list(model.modules())
    with pytest.raises(ValueError, match=message):
        surgery.replace(model, spec, **options)
    assert same(state(model), before) and all(a is b for a, b in zip(model.modules(), modules, strict=True))


def test_a_dry_run_reports_and_changes_nothing():
    model = VIT.model()
    before = list(model.modules())
    text = str(surgery.replace(model, "hydra", where="0.attn", dry_run=True))
    assert text.startswith("would replace 1 site") and "Hydra" in text
    assert all(a is b for a, b in zip(model.modules(), before, strict=True))


# ------------------------------------------------------------------ what the report says


def test_the_report_counts():
    model, x = VIT.model(), VIT.input()[:1]
    before = count(model, x).macs
    report = surgery.replace(model, "ssd")
    assert count(model, x).macs - before == sum(row.after.macs - row.before.macs for row in report.rows)
    for row in report.rows:
        assert row.after.parameters == sum(p.numel() for p in row.new.parameters()) and row.after.dead == 0
        assert row.after.state == sum(t.numel() * 4 for t in row.new.mixer.init_state(1) if t is not None)
    assert f"{report.rows[0].after.macs:,}" in str(report)
    matrix = surgery.replace(VIT.model(), "dense", level="matrix").rows[0]
    assert matrix.after.parameters - matrix.before.parameters == 3 * 7 * 7
    assert matrix.after.dead == 2 * 24 * 24 and matrix.before.dead == 0  # queries and keys are computed for nothing


def test_dead_parameters_are_those_without_gradient():
    module = nn.Sequential(nn.Linear(3, 3))
    module.register_parameter("idle", nn.Parameter(torch.zeros(5)))
    assert dead_parameters(module, lambda twin: twin(torch.randn(2, 3))) == 5


# ------------------------------------------------------------------ what runs in a replacement


@pytest.mark.parametrize(
    ("level", "spec"), [("module", "hydra(expand=1)"), ("matrix", "toeplitz"), ("matrix", "linear")]
)
def test_compile_checkpointing_copies_and_pickles(level, spec):
    model, x = VIT.model(), VIT.input()
    surgery.replace(model, spec, level=level)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model.train()(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.set_grad_checkpointing(True)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), plain, strict=True))


def test_a_wrapper_around_a_projection_acts_at_level_matrix():
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    model, x = VIT.model(torch.float64), VIT.input(torch.float64)
    parametrize.register_parametrization(model.blocks[0].attn.qkv, "weight", Half())
    expected = model(x)
    surgery.replace(model, "softmax", level="matrix")
    torch.testing.assert_close(model(x), expected)


def test_prefix_tokens_stand_aside():
    case = CASES["registers"]
    model, x = case.model(), case.input()
    report = surgery.replace(model, "global_filter", prefix="aside")  # a filter of images
    assert [row.new.mixer.grid for row in report.rows] == [(2, 3)] * 2 and "4 prefix tokens aside" in str(report)
    seen = []
    model.blocks[0].attn.register_forward_hook(lambda module, args, out: seen.append(out))
    model(x)
    assert not seen[0][:, :4].any() and seen[0][:, 4:].any()
    with record(model) as found:
        model(x)
    assert found["blocks.0.attn"].shape[2] == 6


@pytest.mark.skipif(VERSION < (1, 0, 27), reason="attn_mask= and is_causal= came with timm 1.0.27")
def test_masks_and_causality_of_a_call():
    attn, x = vit().blocks[0].attn, torch.randn(3, 7, 24)
    model = nn.ModuleDict({"attn": attn})
    mask = torch.arange(7) < torch.tensor([7, 5, 3]).unsqueeze(1)
    pairs = torch.ones(7, 7, dtype=torch.bool).tril()
    surgery.replace(model, "hydra(expand=1)")
    new = model["attn"]
    odd = torch.where(mask.unsqueeze(-1), x, 1e6)
    out = new(x, attn_mask=mask[:, None, None])
    assert torch.equal(new(odd, attn_mask=mask[:, None, None])[mask], out[mask])
    torch.testing.assert_close(out[2, :3], new(x[2:, :3])[0])
    with pytest.raises(ValueError, match=r"attn: attn_mask \(7, 7\) hides pairs of tokens"):
        new(x, attn_mask=pairs)
    with pytest.raises(ValueError, match="attn: the call demands causality, Hydra is not causal"):
        new(x, is_causal=True)
    with pytest.raises(ValueError, match="attn: the adapter 'timm_attention' does not understand the argument 'rope'"):
        new(x, rope=torch.ones(7, 16))
    second = nn.ModuleDict({"attn": vit().blocks[0].attn})
    surgery.replace(second, "linear", level="matrix")
    with pytest.raises(ValueError, match="attn: the call demands causality, 'linear' was built without"):
        second["attn"](x, is_causal=True)
    with pytest.raises(ValueError, match="attn: the call brings a mask of pairs of tokens, which 'linear' cannot take"):
        second["attn"](x, attn_mask=pairs)
    out = second["attn"](x, attn_mask=mask[:, None, None])
    assert torch.equal(second["attn"](odd, attn_mask=mask[:, None, None])[mask], out[mask])
    torch.testing.assert_close(out[2, :3], second["attn"](x[2:, :3])[0])
    third = nn.ModuleDict({"attn": vit().blocks[0].attn})
    surgery.replace(third, "linear(causal=True)", level="matrix")
    late = x.clone()
    late[:, 4:] += 1
    assert torch.equal(third["attn"](late, is_causal=True)[:, :4], third["attn"](x, is_causal=True)[:, :4])


class Causal(nn.Module):
    """Calls timm's attention with a mask of pairs in one place, with is_causal in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.causal = (block.attn for block in vit().blocks)

    def forward(self, x: Tensor) -> Tensor:
        allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return self.causal(self.pairs(x, attn_mask=allowed), is_causal=True)


def test_a_causal_site_may_see_what_comes_where_that_is_asked_for():
    model, x = nn.ModuleDict({"mixer": create_mixer("s6(d_state=2)", 6, 5)}), torch.randn(2, 5, 6)
    with pytest.raises(ValueError, match="mixer: the site is causal, 'dense' is not"):
        surgery.replace(model, "dense", where="mixer")
    with pytest.raises(ValueError, match="keep_causal=False is for level='module'"):
        surgery.replace(model, "dense", where="mixer", level="matrix", keep_causal=False)
    report = surgery.replace(model, "dense", where="mixer", keep_causal=False)
    late = x.clone()
    late[:, 4:] += 1
    assert not torch.equal(model["mixer"](late)[:, :4], model["mixer"](x)[:, :4])
    report.restore()
    assert torch.equal(model["mixer"](late)[:, :4], model["mixer"](x)[:, :4])


@pytest.mark.skipif(VERSION < (1, 0, 27), reason="is_causal= came with timm 1.0.27")
def test_a_run_tells_what_no_mixer_can_serve():
    model, x = Causal(), torch.randn(3, 7, 24)
    pairs, causal = surgery.find(model, example=x)
    assert "hides pairs of tokens" in pairs.why_not("module")
    assert pairs.why_not("matrix") is None and pairs.length == 7
    assert causal.causal and causal.length == 7
    with pytest.raises(ValueError, match=r"pairs: cannot be replaced .* attn_mask \(7, 7\) hides pairs"):
        surgery.replace(model, "ssd", example=x)
    with pytest.raises(ValueError, match="causal: the site is causal, 'hydra' is not"):
        surgery.replace(model, "hydra", where="causal", example=x)
    with pytest.raises(ValueError, match="causal: the site is causal, the structure 'monarch' is not and cannot be"):
        surgery.replace(model, "monarch", where="causal", level="matrix", example=x)
    late = x.clone()
    late[:, 5:] += 1
    specs = ("softmax", "dense", "toeplitz", "low_rank(2)", "linear", "quasiseparable", "uniform", "random", "identity")
    for level, spec in [("module", "ssd"), *(("matrix", spec) for spec in specs)]:
        report = surgery.replace(model, spec, where="causal", level=level, example=x)
        assert torch.equal(model(late)[:, :5], model(x)[:, :5]) and not torch.equal(model(late), model(x)), spec
        report.restore()


def test_dropout_of_probabilities_is_kept():
    model, x = vit(attn_drop_rate=0.5).double().train(), VIT.input(torch.float64)
    with record(model) as found:
        model(x)
    entries = found["blocks.0.attn"].to_dense()
    assert isinstance(found["blocks.0.attn"], Dense) and 0.3 < (entries == 0).double().mean() < 0.7
    surgery.replace(model, "uniform", level="matrix")
    with record(model) as found:
        model(x)
    entries = found["blocks.0.attn"].to_dense()
    assert 0.3 < (entries == 0).double().mean() < 0.7
    torch.testing.assert_close(entries[entries > 0], torch.full_like(entries[entries > 0], 2 / 7))
    assert torch.equal(model.eval()(x), model(x))


def test_mean_matrix_is_the_average_of_what_ran():
    batches = [torch.randn(n, 3, 32, 48, dtype=torch.float64) for n in (3, 2)]
    for level, spec in (("module", "mean_matrix(heads=3)"), ("matrix", "mean_matrix")):
        model = VIT.model(torch.float64)
        with torch.no_grad(), record(model) as found:
            for batch in batches:
                model(batch)
        expected = torch.cat([found["blocks.1.attn"].to_dense(), found["blocks.1.attn#2"].to_dense()]).mean(0)
        surgery.replace(model, spec, level=level, where="1.attn", batches=batches)
        with record(model) as found:
            model(batches[0])
        torch.testing.assert_close(found["blocks.1.attn"].to_dense()[0], expected)


@pytest.mark.skipif(VERSION < (1, 0, 23), reason="attn_layer= came with timm 1.0.23")
def test_attn_layer_builds_a_vit_with_a_mixer():
    from matmix.adapters import attn_layer

    model = vit(attn_layer=attn_layer("hydra(expand=1)"), proj_drop_rate=0.1)
    assert all(isinstance(block.attn, Replacement) for block in model.blocks)
    assert model(VIT.input()).shape == (3, 5) and model.blocks[0].attn.proj_drop.p == 0.1
    assert tuple(site.name for site in surgery.find(model)) == ATTN
    with pytest.raises(ValueError, match="unknown mixer 'hydro'"):
        attn_layer("hydro")


# ------------------------------------------------------------------ saved and applied


def test_another_model_is_refused_by_its_first_difference(tmp_path, monkeypatch):
    report = surgery.replace(VIT.model(), "ssd", where="0.attn")
    surgery.save(report, tmp_path)
    for model, message in (
        (vit(depth=1), r"another model: it has no parameter 'blocks\.1\.norm1\.weight'"),
        (vit(embed_dim=48), r"another model: cls_token is \(1, 1, 48\) here and was \(1, 1, 24\)"),
        (vit(depth=3), r"another model: its parameter 'blocks\.2\.norm1\.weight' is not in the model of the report"),
        (vit(num_heads=4), r"blocks\.0\.attn: heads is 4 here and was 3"),
    ):
        before = state(model)
        with pytest.raises(ValueError, match=message):
            surgery.apply(model, tmp_path)
        assert same(state(model), before)
    with pytest.raises(FileNotFoundError, match=r"holds no surgery\.json"):
        surgery.apply(VIT.model(), tmp_path / "none")
    with monkeypatch.context() as without, pytest.raises(ImportError, match=r"pip install 'matmix\[experiments\]'"):
        without.setitem(sys.modules, "safetensors.torch", None)
        surgery.save(report, tmp_path)
    report.restore()
    with pytest.raises(ValueError, match=r"not in the model: blocks\.0\.attn"):
        surgery.save(report, tmp_path)
