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
    GROUPED,
    LENGTH,
    NEW,
    TEXT,
    WORDS,
    Case,
    padded,
    padding,
    real,
    shaken,
    tokens_of,
    transformers,
)

SIDES = (None, "right", "left")
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


def close(a, b, dtype=torch.float32):
    # Eager decoders take their softmax in float32 whatever the model's type.
    torch.testing.assert_close(a, b, rtol=0, atol=5e-6 if dtype == torch.float64 else 2e-5)


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


def test_residual_and_norm_inside_of_an_attention_stay(tmp_path):
    """ALBERT's: with its weights, its names and its place in an optimizer; what is saved is the mixer alone."""
    case = CASES["albert"]
    model, fresh, inputs = case.model(), case.model(), case.input()
    norm = model.get_submodule(ALBERT).LayerNorm
    names, before = list(model.state_dict()), tokens_of(model(**inputs))
    optimizer = torch.optim.Adam(model.parameters())
    held = [id(p) for p in optimizer.param_groups[0]["params"]]
    report = surgery.replace(model, "value_only", optimizer=optimizer)
    assert model.get_submodule(ALBERT).LayerNorm is norm and f"{ALBERT}.LayerNorm.weight" in model.state_dict()
    now = [id(p) for p in optimizer.param_groups[0]["params"]]
    assert len(now) == len(set(now)) == len(list(model.parameters())) and id(norm.weight) in now
    with torch.no_grad():
        norm.bias += 1.0  # trained, and no part of the surgery
    surgery.save(report, tmp_path)
    surgery.apply(fresh, tmp_path)
    assert not torch.allclose(tokens_of(fresh(**inputs)), tokens_of(model(**inputs)))
    with torch.no_grad():
        fresh.get_submodule(ALBERT).LayerNorm.bias += 1.0
        assert torch.equal(tokens_of(fresh(**inputs)), tokens_of(model(**inputs)))
        report.restore()
        norm.bias -= 1.0
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == held and list(model.state_dict()) == names
    close(tokens_of(model(**inputs)), before)
    zero, one = case.model(), case.model()  # with no mixing term, what is left is the norm of the tokens
    surgery.replace(zero, "zero")
    attention, x = one.get_submodule(ALBERT), torch.randn(3, 5, 24)
    close(zero.get_submodule(ALBERT)(x, attention_mask=None)[0], attention.LayerNorm(x))


@pytest.mark.skipif(not NEW, reason="before 5.0 T5 does not use the attention interface, and is listed as unknown")
def test_the_bias_of_positions_stays_for_the_layers_that_come_later():
    """T5's first layer makes it for all; whichever layer a mixer stands in, the others get what they got."""
    options = {"vocab_size": 31, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3}
    config = transformers.T5Config(**options, decoder_start_token_id=0, pad_token_id=0)
    torch.manual_seed(0)
    model = shaken(transformers.T5ForConditionalGeneration(config)).eval()
    ids = CASES["bert"].input()["input_ids"]
    inputs = {"input_ids": ids, "attention_mask": padding("right"), "decoder_input_ids": ids, "use_cache": False}
    passed = []
    layer = model.encoder.block[1].layer[0]
    layer.register_forward_pre_hook(lambda m, args, kwargs: passed.append(kwargs["position_bias"]), with_kwargs=True)
    before, weights = model(**inputs).logits, {key: value.clone() for key, value in model.state_dict().items()}
    report = surgery.replace(model, "softmax", level="matrix")
    close(model(**inputs).logits, before)
    report.restore()
    passed.clear()
    model(**inputs)
    both = {"encoder.*": "hydra(expand=1, head_dim=8)", "decoder.*": "ssd(expand=1, head_dim=8)"}
    for spec, where in ((both["encoder.*"], "encoder.block.0.layer.0.SelfAttention"), (both, "self_attention")):
        report = surgery.replace(model, spec, where)
        model(**inputs).logits.square().sum().backward()
        assert all(p.grad is not None for row in report.rows for p in row.part.mixer.parameters())
        assert torch.equal(passed[-1], passed[0])
        left = model.state_dict()
        assert all(torch.equal(left[key], weights[key]) for key in weights if key in left)
        assert "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" in left
        if spec is both:
            greedy = {"max_new_tokens": 12, "do_sample": False, "attention_mask": padding("right")}
            with_state = model.generate(ids, **greedy)
            assert torch.equal(with_state, model.generate(ids, **greedy, use_cache=False))
        report.restore()
    assert torch.equal(model(**inputs).logits, before)


def test_scores_that_are_capped_are_the_matrix_that_ran():
    """Gemma 2's, which the library's eager function caps and its sdpa does not."""
    options = {**WORDS, **GROUPED, "head_dim": 6, "attn_logit_softcapping": 0.5, "sliding_window": 32}
    for how in ("eager",) if NEW else ("eager", "sdpa"):  # from 5.0 on it takes no sdpa
        case = Case("Gemma2ForCausalLM", "Gemma2Config", options, (), causal=True)
        model, twin = case.model(how), case.model(how)
        surgery.replace(model, "softmax", level="matrix")
        for side in SIDES:
            inputs = padded(case.input(), side)
            close(real(model(**inputs), side), real(twin(**inputs), side))
        surgery.replace(twin, "ssd(expand=1, head_dim=8)")
        assert tokens_of(twin(**case.input())).isfinite().all()


def test_what_crosses_is_known_and_stays_at_level_module():
    model = series_transformer()
    sites = {site.name: site for site in surgery.find(model)}
    assert sites["encoder.layers.0.self_attn"].kind == "self_attention"
    assert sites["decoder.layers.0.self_attn"].causal is True
    crossing = sites["decoder.layers.0.encoder_attn"]
    assert crossing.kind == "cross_attention" and "joins two" in crossing.why_not("module")
    inputs = series_input()
    before = model(**inputs).last_hidden_state
    report = surgery.replace(model, "softmax", level="matrix")
    close(model(**inputs).last_hidden_state, before)
    report.restore()
    report = surgery.replace(model, {"encoder_attn": "linear", "decoder.layers.0.self_attn": "linear"}, level="matrix")
    assert not torch.allclose(model(**inputs).last_hidden_state, before, atol=1e-4)
    report.restore()
    report = surgery.replace(model, "hydra(expand=1, head_dim=8)", where="encoder.layers.0.self_attn")
    assert model(**inputs).last_hidden_state.shape == before.shape
    report.restore()
    assert torch.equal(model(**inputs).last_hidden_state, before)


def series_transformer():
    config = transformers.TimeSeriesTransformerConfig(
        prediction_length=4, context_length=8, d_model=24, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=3, decoder_attention_heads=3, lags_sequence=[1], num_time_features=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return shaken(transformers.TimeSeriesTransformerModel(config)).eval()


def series_input():
    draw = torch.Generator().manual_seed(0)
    return {
        "past_values": torch.randn(3, 9, generator=draw), "past_time_features": torch.randn(3, 9, 1, generator=draw),
        "past_observed_mask": torch.ones(3, 9), "future_values": torch.randn(3, 4, generator=draw),
        "future_time_features": torch.randn(3, 4, 1, generator=draw), "use_cache": False,
    }  # fmt: skip


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


def test_the_causality_of_a_mask_alone_is_found_by_a_run():
    config = transformers.CLIPTextConfig(**{**BERT_LIKE, "vocab_size": 31, "bos_token_id": 1, "eos_token_id": 2})
    model = transformers.CLIPTextModel(config).eval()
    ids = CASES["bert"].input()["input_ids"]
    before = model(input_ids=ids).last_hidden_state
    assert [site.causal for site in surgery.find(model)] == [None, None]
    assert [site.causal for site in surgery.find(model, example={"input_ids": ids})] == [True, True]
    with pytest.raises(ValueError, match=r"self_attn: the site is causal, 'hydra"):
        surgery.replace(model, "hydra(expand=1, head_dim=8)", example={"input_ids": ids})
    report = surgery.replace(model, "hydra(expand=1, head_dim=8)")
    with pytest.raises(ValueError, match=r"layers.0.self_attn: the call demands causality, Hydra is not causal"):
        model(input_ids=ids)
    report.restore()
    surgery.replace(model, "softmax", level="matrix")
    close(model(input_ids=ids).last_hidden_state, before)


BERT_LIKE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}


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


@pytest.mark.parametrize(
    ("name", "where"), [("llama", "0"), ("llama", "1"), ("llama", "both"), ("qwen2", "0"), ("bert_decoder", "both")]
)
def test_generation_goes_on_from_the_state(name, where):
    model = CASES[name].model()
    sites = [site.name for site in surgery.find(model)]
    surgery.replace(model, "ssd(expand=1, head_dim=8)", where=sites if where == "both" else sites[int(where)])
    ids = CASES[name].input()["input_ids"]
    if name == "bert_decoder":
        return check_steps(model, ids)
    greedy = {"do_sample": False, "max_new_tokens": 64 if where == "both" else 12}
    for side in SIDES[::2]:
        inputs = {"input_ids": ids} if side is None else {"input_ids": ids, "attention_mask": padding(side)}
        for more in ({}, {"num_beams": 3, "max_new_tokens": 8}):
            with_state = model.generate(**inputs, **{**greedy, **more})
            assert with_state.shape[1] == LENGTH + {**greedy, **more}["max_new_tokens"]
            assert torch.equal(with_state, model.generate(**inputs, **{**greedy, **more}, use_cache=False))


def check_steps(model, ids):
    with torch.no_grad():
        whole = tokens_of(model(ids, use_cache=False))
        out = model(ids[:, :3], use_cache=True)
        seen = [tokens_of(out)]
        for at in range(3, LENGTH):
            out = model(ids[:, at : at + 1], past_key_values=out.past_key_values)
            seen.append(tokens_of(out))
    close(torch.cat(seen, 1), whole)


def test_what_keeps_no_state_says_so_when_it_is_asked_to_go_on():
    model, ids = CASES["llama"].model(), CASES["llama"].input()["input_ids"]
    report = surgery.replace(model, "toeplitz(causal=True)", example=CASES["llama"].input())
    out = model(ids)  # makes a cache, which nobody reads
    refusal = (
        r"model.layers.0.self_attn: the call goes on from a cache that holds no state \(.* has none\): generate\(use_"
    )
    with pytest.raises(ValueError, match=refusal):
        model(ids[:, :1], past_key_values=out.past_key_values)
    report.restore()
    report = surgery.replace(model, "ssd(expand=1, head_dim=8)")
    out = model(ids)
    with pytest.raises(ValueError, match="first call had gradients on"):
        model(ids[:, :1], past_key_values=out.past_key_values)
    with pytest.raises(ValueError, match=r"layers.0.self_attn: a Static\w* of a cache cannot keep the state"):
        model.generate(ids, max_new_tokens=3, cache_implementation="static")
    report.restore()
    report = surgery.replace(model, "s4d(causal=True)")
    with torch.no_grad():
        model(ids, attention_mask=padding("left"))
        with record(model):
            out = model(ids)
    with pytest.raises(ValueError, match=r"holds no state \(the first call was recorded\)"), torch.no_grad():
        model(ids[:, :1], past_key_values=out.past_key_values)
    report.restore()
    report = surgery.replace(model, "softmax", level="matrix")
    again = model.generate(ids, max_new_tokens=8, do_sample=False)
    report.restore()
    assert torch.equal(again, model.generate(ids, max_new_tokens=8, do_sample=False))
    surgery.replace(model, "linear", level="matrix")
    with pytest.raises(
        ValueError, match=r"layers.0.self_attn: 'linear' cannot go on from a cache of keys: generate\(use_cache=F"
    ):
        model.generate(ids, max_new_tokens=8)


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
