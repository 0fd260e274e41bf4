"""What single models of transformers have of their own: norms inside, shared positions, caps, crossing, causality."""

from __future__ import annotations

import pytest
import torch

from matmix import surgery

from .transformers_models import (
    ALBERT,
    CASES,
    GROUPED,
    NEW,
    SIDES,
    SMALL,
    WORDS,
    Case,
    close,
    padded,
    padding,
    real,
    shaken,
    tokens_of,
    transformers,
)


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


def test_the_causality_of_a_mask_alone_is_found_by_a_run():
    config = transformers.CLIPTextConfig(**{**SMALL, "vocab_size": 31, "bos_token_id": 1, "eos_token_id": 2})
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
