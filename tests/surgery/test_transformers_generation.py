"""Generation with transformers' caches: the state of a mixer goes on, and what has none says so."""

from __future__ import annotations

import pytest
import torch

from matmix import surgery
from matmix.inspect import record

from .transformers_models import CASES, LENGTH, SIDES, close, padding, tokens_of


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
