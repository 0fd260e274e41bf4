"""transformers under surgery, at both ends of its versions: matrices that ran, masks in all forms, replacements."""

from __future__ import annotations

import pytest
import torch

from matmix import surgery
from matmix.adapters import discover
from matmix.adapters.transformers_masks import read_mask
from matmix.inspect import record
from matmix.matrices import Softmax

from .transformers_models import (
    ALBERT,
    CASES,
    LENGTH,
    NEW,
    SIDES,
    TEXT,
    close,
    padded,
    padding,
    real,
    tokens_of,
)

LOOKS = [(name, how) for name in CASES for how in ("sdpa", "eager") if NEW or (name, how) != ("patchtst", "sdpa")]


def sides(name, how="sdpa", dtype=torch.float32):
    """Where padding can stand in what the library itself can run."""
    if CASES[name].kind != "text":
        return (None,)
    if dtype == torch.float64 and CASES[name].causal and how == "eager":
        return (None, "right")  # float64's least number overflows in its softmax in float32: NaN in rows without a key
    if dtype == torch.float64 and name == "bert_decoder" and not NEW:
        return (None,)  # the library makes no such mask
    return SIDES


def mixer_for(name):
    return "ssd(expand=1, head_dim=8)" if CASES[name].causal else "hydra(expand=1, head_dim=8)"


@pytest.mark.parametrize("name", CASES)
def test_sites(name):
    case = CASES[name]
    model = case.model()
    sites = surgery.find(model, example=case.input())
    assert tuple(site.name for site in sites) == case.sites
    for site in sites:
        assert site.dim == 24 and site.kind == "self_attention" and site.causal is case.causal
        assert not site.refused
        assert site.length == {"text": LENGTH, "image": 7, "series": 6}[case.kind]
        assert not site.padded
        assert (site.prefix, site.grid) == ((1, (2, 3)) if name == "vit" else (0, None))
        assert site.heads == (4 if name in ("llama", "qwen2") else 3)
        outside = ("bert" in name and name not in ("distilbert", "albert")) or (name == "vit" and not NEW)
        assert ("output projection stands outside" in site.note) is outside
    if name == "albert":
        assert sites[0].name == ALBERT and sites[0].calls == 2  # one module is all layers
        assert sites[0].note == "its residual and norm stay"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "how"), LOOKS)
def test_old_matrices_are_those_that_ran(name, how, dtype):
    case = CASES[name]
    model = case.model(how, dtype)
    compared = []
    for one in discover(model):
        told = []

        def before(module, args, kwargs, one=one, told=told):
            told.append(one.attended(args, kwargs))

        def after(module, args, kwargs, out, told=told):
            found = told.pop()
            own = found.finish(found.matrix.matmul(found.values))
            assert type(own) is type(out) and (not isinstance(out, tuple) or len(own) == len(out))
            a, b = (own[0], out[0]) if isinstance(out, tuple) else (own, out)
            mask = padding(side)
            close(*((a, b) if mask is None else (a[mask.bool()], b[mask.bool()])), dtype)
            assert found.matrix.causal is (case.causal and found.matrix.bias is None)
            compared.append(side)

        one.module.register_forward_pre_hook(before, with_kwargs=True)
        one.module.register_forward_hook(after, with_kwargs=True)
    with torch.no_grad():
        for side in sides(name, how, dtype):
            model(**padded(case.input(dtype), side))
    assert len(compared) == 2 * len(sides(name, how, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "how"), LOOKS)
def test_softmax_at_level_matrix_is_the_untouched_model(name, how, dtype):
    case = CASES[name]
    model, twin = case.model(how, dtype), case.model(how, dtype)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    report = surgery.replace(model, "softmax", level="matrix")
    with torch.no_grad():
        for side in sides(name, how, dtype):
            inputs = padded(case.input(dtype), side)
            close(real(model(**inputs), side), real(twin(**inputs), side), dtype)
    assert model.config._attn_implementation == how
    assert weights.keys() == model.state_dict().keys()
    report.restore()
    inputs = case.input(dtype)
    assert torch.equal(tokens_of(model(**inputs)), tokens_of(twin(**inputs)))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())
    assert all(
        one.module.config is model.config for one in discover(model) if NEW or one.site.adapter == "transformers"
    )


def changes(model, inputs, side, at):
    """Where the outputs of real tokens change if tokens are others ``at`` these places."""
    mask = padding(side)
    other = {**inputs, "input_ids": torch.where(at, inputs["input_ids"] % 29 + 2, inputs["input_ids"])}
    with torch.no_grad():
        moved = (tokens_of(model(**inputs)) != tokens_of(model(**other))).any(-1)
    return moved if mask is None else moved & mask.bool()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_whole_modules_replaced(name, training):
    case = CASES[name]
    for dtype, how in ((torch.float32, "sdpa"), (torch.float64, "eager")):
        model = case.model(how, dtype).train(training)
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        report = surgery.replace(model, mixer_for(name), example=case.input(dtype))
        weights = {key: value for key, value in weights.items() if "running" not in key and "batches" not in key}
        left = {key: value for key, value in model.state_dict().items() if key in weights}
        assert left and all(torch.equal(value, weights[key]) for key, value in left.items())
        ran = []
        for row in report.rows:
            row.part.mixer.register_forward_hook(lambda module, args, out, ran=ran: ran.append(module))
        for side in sides(name, how, dtype):
            ran.clear()
            inputs = padded(case.input(dtype), side)
            out = tokens_of(model(**inputs))
            assert len(ran) == 2 and out.dtype == dtype
            out[0].square().sum().backward()
        assert all(p.grad is not None for row in report.rows for p in row.part.parameters())
        assert str(report).startswith(f"replaced {len(case.sites)} site")
        if NEW or name != "vit":  # where ViT keeps it to itself
            with pytest.raises(ValueError, match=f"{case.sites[0]}: output_attentions asks for the weights"):
                model(**case.input(dtype), output_attentions=True)
        report.restore()
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())


@pytest.mark.parametrize("name", CASES)
def test_saved_and_applied_on_a_fresh_model(name, tmp_path):
    case = CASES[name]
    for level, spec in (("module", mixer_for(name)), ("matrix", "toeplitz")):
        model, fresh = case.model(), case.model()
        report = surgery.replace(model, spec, level=level, example=case.input(), seed=3)
        surgery.save(report, tmp_path / level)
        surgery.apply(fresh, tmp_path / level)
        assert torch.equal(tokens_of(fresh(**case.input())), tokens_of(model(**case.input())))


def test_class_tokens_of_images_stand_aside_if_asked():
    model, x = CASES["vit"].model(), CASES["vit"].input()
    assert {(site.length, site.prefix, site.grid) for site in surgery.find(model)} == {(7, 1, (2, 3))}
    report = surgery.replace(
        model, "global_filter", prefix="aside"
    )  # a filter of the grid, whose length nothing else tells
    assert tokens_of(model(**x)).shape == (3, 7, 24)
    report.restore()
    surgery.replace(model, "toeplitz", level="matrix")
    assert tokens_of(model(**x)).isfinite().all()


@pytest.mark.parametrize(("name", "layer"), [("llama", "q_proj"), ("bert", "query"), ("distilbert", "q_lin")])
def test_layers_that_are_wrapped_are_called(name, layer):
    peft = pytest.importorskip("peft")
    model, case = CASES[name].model(), CASES[name]
    bare = [site.name for site in surgery.find(model)]
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=[layer], init_lora_weights=False))
    assert [site.name for site in surgery.find(model)] == [f"base_model.model.{site}" for site in bare]
    before = tokens_of(model(**case.input()))
    assert not torch.allclose(before, tokens_of(case.model()(**case.input())), atol=1e-3)
    surgery.replace(model, "softmax", level="matrix")
    close(tokens_of(model(**case.input())), before)


def test_masks_are_read_as_padding_and_causality():
    keys = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]).bool()
    past = torch.ones(5, 5, dtype=torch.bool).tril()
    square = keys[:, None, None].expand(-1, 1, 5, -1)
    least = torch.finfo(torch.float32).min
    window = past & ~past.tril(-3)
    packed = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).tril().bool()
    opened = square & past | ~(square & past).any(-1, keepdim=True)  # rows that see nothing made to see all

    def added(mask):
        return torch.zeros(mask.shape).masked_fill(~mask, least)

    for mask, rows, causal in (
        (keys.long(), 5, False), (keys.float(), 5, False), (keys[:, None, None], 5, False), (square, 5, False),
        (added(square), 5, False), (added(square) * 2, 5, False), (square & past, 5, True), (opened, 5, True),
        (added(square & past), 5, True), ((square & past)[:, :, -2:], 2, True), (square[:, :, -1:], 1, False),
    ):  # fmt: skip
        seen = read_mask(mask, rows, 5, causal, "here")
        assert torch.equal(seen.keys, keys) and seen.causal is causal and seen.pairs is None
    whole = past[None, None]
    assert read_mask(whole, 5, 5, True, "here") == (None, True, None)  # without padding no mask of tokens is left
    for mask in (window[None, None], packed[None, None], added(packed[None, None]), torch.rand(1, 3, 5, 5)):
        assert read_mask(mask, 5, 5, True, "here").pairs is not None
    changed = added(square)
    assert not read_mask(changed, 5, 5, False, "here").causal
    changed.copy_(added(square & past))  # the same tensor with other numbers is read again
    assert read_mask(changed, 5, 5, False, "here").causal
    for mask, message in (
        ("no", "must be a tensor, got str"),
        (whole[..., :4], r"got \(1, 1, 5, 4\)"),
        (whole.int(), "int32"),
    ):
        with pytest.raises(ValueError, match=f"here: .*{message}"):
            read_mask(mask, 5, 5, False, "here")


@pytest.mark.parametrize("level", ["module", "matrix"])
@pytest.mark.parametrize(("name", "how"), [(n, h) for n, h in LOOKS if n in TEXT])
def test_padding_has_no_influence_and_causality_is_exact(name, how, level):
    case = CASES[name]
    model = case.model(how)
    surgery.replace(model, mixer_for(name) if level == "module" else "linear", level=level)
    for side in ("right", "left"):
        inputs = padded(case.input(), side)
        assert not changes(model, inputs, side, ~padding(side).bool()).any()
    at = torch.zeros(3, LENGTH, dtype=torch.bool)
    at[:, 4] = True
    moved = changes(model, case.input(), None, at)
    assert moved[:, 4:].all() and bool(moved[:, :4].any()) is not case.causal
    assert not case.causal or not moved[:, :4].any()


@pytest.mark.parametrize("spec", ["toeplitz", "low_rank(2)", "quasiseparable", "uniform", "cauchy"])
def test_structures_in_place_of_the_softmax(spec):
    for name in ("bert", "distilbert", "albert", "vit", "patchtst", "llama"):
        case = CASES[name]
        if case.causal and spec == "cauchy":
            with pytest.raises(ValueError, match=r"layers.0.self_attn: the site is causal, the structure 'cauchy' is"):
                surgery.replace(case.model(), spec, level="matrix")
            continue
        model = case.model()
        before = tokens_of(model(**case.input()))
        report = surgery.replace(model, spec, level="matrix", example=case.input())
        now = tokens_of(model(**case.input()))
        assert now.isfinite().all() and not torch.allclose(now, before, atol=1e-3)
        report.restore()
        assert torch.equal(tokens_of(model(**case.input())), before)


def test_only_the_chosen_site_has_another_matrix():
    model, case = CASES["llama"].model(), CASES["llama"]
    surgery.replace(model, "linear", where="layers.1.self_attn", level="matrix")
    first, second = (layer.self_attn for layer in model.model.layers)
    assert first.config is model.config and second.config is not model.config
    assert model.config._attn_implementation == "sdpa"
    twin = case.model()
    kept = []
    for one in (model, twin):
        one.model.layers[0].register_forward_hook(lambda module, args, out: kept.append(out))
        one(**case.input())
    assert torch.equal(*(out[0] if isinstance(out, tuple) else out for out in kept))


def test_masks_of_four_axes_that_a_user_gives():
    case = CASES["bert"]
    past = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None].expand(3, 1, -1, -1)
    forms = past, torch.zeros(past.shape).masked_fill(~past, torch.finfo(torch.float32).min)
    for mask in forms:
        if not NEW:
            mask = past[:, 0].float()  # BERT makes numbers of four axes of such a mask
        twin, inputs = case.model(), {**case.input(), "attention_mask": mask}
        model = case.model()
        report = surgery.replace(model, "softmax", level="matrix")
        close(tokens_of(model(**inputs)), tokens_of(twin(**inputs)))
        report.restore()
        for spec, level in (("linear", "matrix"), ("hydra(expand=1, head_dim=8)", "module")):
            report = surgery.replace(model, spec, level=level)
            with pytest.raises(ValueError, match=r"encoder.layer.0.attention.self: the call demands causality"):
                model(**inputs)
            report.restore()
        with pytest.raises(ValueError, match=r"encoder.layer.0.attention.self: the site is causal, 'hydra"):
            surgery.replace(model, "hydra(expand=1, head_dim=8)", example=inputs)
        report = surgery.replace(model, "linear_attention(causal=True)", example=inputs)
        at = torch.zeros(3, LENGTH, dtype=torch.bool)
        at[:, 4] = True
        assert not changes(model, inputs, None, at)[:, :4].any()


@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_masks_of_pairs_are_kept_by_the_softmax_and_refused_by_the_others(how):
    case = CASES["llama"]
    packed = torch.block_diag(torch.ones(3, 3), torch.ones(4, 4)).tril().bool()[None, None].expand(3, 1, -1, -1)
    added = torch.zeros(packed.shape).masked_fill(~packed, torch.finfo(torch.float32).min)
    model, inputs = case.model(how), {**case.input(), "attention_mask": added}
    before = tokens_of(model(**inputs))
    report = surgery.replace(model, "softmax", level="matrix")
    close(tokens_of(model(**inputs)), before)
    report.restore()
    for spec, level in (("linear", "matrix"), ("ssd(expand=1, head_dim=8)", "module")):
        report = surgery.replace(model, spec, level=level)
        with pytest.raises(ValueError, match=r"model.layers.0.self_attn: .* pairs of tokens"):
            model(**inputs)
        report.restore()


def test_what_is_not_understood_is_refused_by_name():
    case = CASES["llama"]
    model = case.model()
    with pytest.raises(ValueError, match=r"model.layers.0.self_attn: the site is causal, 'hydra"):
        surgery.replace(model, "hydra(expand=1, head_dim=8)")
    report = surgery.replace(model, "ssd(expand=1, head_dim=8)")
    with pytest.raises(ValueError, match=r"model.layers.0.self_attn: .* does not understand the argument 'my_own'"):
        model(**case.input(), my_own=3)
    with pytest.raises(ValueError, match=r"model.layers.0.self_attn: output_attentions asks for the weights"):
        model.model.layers[0].self_attn(torch.zeros(3, LENGTH, 24), output_attentions=True)
    report.restore()
    surgery.replace(model, "linear", level="matrix")
    with pytest.raises(ValueError, match=r"model.layers.0.self_attn: attention is told of my_own"):
        model(**case.input(), my_own=3)


@pytest.mark.parametrize("name", CASES)
def test_record_sees_them_and_changes_nothing(name):
    case = CASES[name]
    model = case.model()
    inputs = {key: value for key, value in case.input().items() if key != "use_cache"}  # decoders make a cache
    with torch.no_grad():
        before = model(**inputs)
        with record(model) as found:
            during = model(**inputs)
    calls = 2 if name == "albert" else 1
    assert list(found) == [f"{site}#{n + 1}" if n else site for site in case.sites for n in range(calls)]
    assert all(isinstance(matrix, Softmax) and matrix.causal is case.causal for matrix in found.values())
    close(tokens_of(during), tokens_of(before))
    if case.causal:
        first, second = (out.past_key_values.get_seq_length() for out in (before, during))
        assert first == second == LENGTH
    surgery.replace(model, "mean_matrix", level="matrix", example=case.input(), batches=[inputs])
    assert tokens_of(model(**inputs)).isfinite().all()


@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_weights_are_those_that_ran(how):
    case = CASES["bert"]
    model, twin = case.model("eager"), case.model("eager")
    surgery.replace(model, "softmax", level="matrix", where="layer.0.attention.self")
    outs = [one(**case.input(), output_attentions=True).attentions for one in (model, twin)]
    assert len(outs[0]) == len(outs[1]) == 2
    for a, b in zip(*outs, strict=True):
        close(a, b)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("roberta", "patchtst", "albert")])
def test_gradient_checkpointing(name):
    case = CASES[name]
    for level, spec in (("module", mixer_for(name)), ("matrix", "linear")):
        grads = []
        for on in (False, True):
            model = case.model().train()
            if on:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            for part in model.modules():
                if isinstance(part, torch.nn.Dropout):
                    part.p = 0.0
            report = surgery.replace(model, spec, level=level, example=case.input())
            torch.manual_seed(0)
            tokens_of(model(**case.input())).square().mean().backward()
            grads.append([p.grad for row in report.rows for p in row.new.parameters()])
        assert grads[0] and all(g is not None for g in grads[0])
        for a, b in zip(*grads, strict=True):
            close(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("roberta", "qwen2", "bert_decoder")])
def test_compiled(name):
    case = CASES[name]
    for level, spec in (("module", mixer_for(name)), ("matrix", "softmax"), ("matrix", "linear")):
        torch.compiler.reset()
        model = case.model()
        surgery.replace(model, spec, level=level, example=case.input())
        side = "right" if case.kind == "text" else None
        inputs = padded(case.input(), side)
        # PatchTST itself fails under aot_eager: it views a transposed tensor.
        backend = "eager" if name == "patchtst" else "aot_eager"
        with torch.no_grad():
            close(real(torch.compile(model, backend=backend)(**inputs), side), real(model(**inputs), side))
    torch.compiler.reset()
