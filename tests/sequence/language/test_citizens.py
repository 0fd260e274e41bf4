"""What transformers' common model tests ask of a model, for a tiny configuration of each head."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from sequence.language import (
    MatmixConfig,
    MatmixForCausalLM,
    MatmixForMaskedLM,
    MatmixForSequenceClassification,
    MatmixForTokenClassification,
    MatmixModel,
)
from tests.sequence.language.test_models import IDS, config
from tests.sequence.test_encoder import moved

HEADS = [MatmixForMaskedLM, MatmixForSequenceClassification, MatmixForTokenClassification, MatmixForCausalLM]
CAUSAL = {"mixer": "ssd(head_dim=8, d_state=4)", "position": "none"}


def build(cls, **options):
    return moved(cls(config(**{**(CAUSAL if cls is MatmixForCausalLM else {}), "num_labels": 3, **options})))


def labels_of(cls) -> torch.Tensor:
    return torch.tensor([0, 2]) if cls is MatmixForSequenceClassification else IDS % 3


def test_configuration_is_data():
    """JSON and back, under transformers' names too; a spec is read, never run."""
    made = config(delimiters=(3, 4), num_labels=3, problem_type="regression")
    again = MatmixConfig.from_dict(json.loads(made.to_json_string()))
    assert again.to_dict() == made.to_dict()
    assert (made.hidden_size, made.num_hidden_layers, made.max_position_embeddings) == (16, 2, 12)
    named = MatmixConfig(mixer="attention", hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
    assert [str(spec) for spec in named.specs()] == ["attention(heads=4)"] * 3
    assert str(config(mixer="attention(head_dim=4), ssd", heads=8).specs()[0]) == "attention(head_dim=4)"
    for wrong, message in (
        ({"mixer": "__import__('os').getcwd()"}, "spec .* expected a name, a call"),
        ({"mixer": "hidra"}, "unknown mixer 'hidra'.*hydra"),
        ({"depth": 3, "mixer": "ssd, hydra"}, "does not divide depth=3"),
        ({"length": 0}, r"length must be a whole number in \[1, "),
        ({"pool": "cls"}, "pool must be one of first, mean, max, last"), ({"act": "tanh"}, "act must be one of"),
        ({"pad_to": "max"}, "pad_to must be one of"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            config(**wrong)


@pytest.mark.parametrize("cls", HEADS)
def test_a_head_does_what_transformers_asks(cls):
    """Hidden states, embedded inputs, tuples, recomputation, and a loss whose gradient reaches every weight."""
    model, labels = build(cls), labels_of(cls)
    plain = model(IDS, labels=labels, output_hidden_states=True)
    assert [tuple(layer.shape) for layer in plain.hidden_states] == [(2, 9, 16)] * 3
    embedded = model(inputs_embeds=model.get_input_embeddings()(IDS), labels=labels)
    torch.testing.assert_close(embedded.logits, plain.logits)
    loss, logits = model(IDS, labels=labels, return_dict=False)
    assert torch.equal(logits, plain.logits) and torch.equal(loss, plain.loss)
    plain.loss.backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, grad in wanted.items() if grad is None or not grad.any()] == []
    again = copy.deepcopy(model).train()
    again.zero_grad()
    again.gradient_checkpointing_enable({"use_reentrant": False})
    again(IDS, labels=labels).loss.backward()
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cls", [MatmixForMaskedLM, MatmixForCausalLM])
def test_embeddings_are_resized(cls, tied, tmp_path):
    """Old words keep their logits, new ones are said and learned; a larger model saves and loads, a smaller one too."""
    model = build(cls, tie_word_embeddings=tied).eval()
    with torch.no_grad():
        before = model(IDS).logits
        for size in (37, 30):
            model.resize_token_embeddings(size, mean_resizing=False)
            assert model.config.vocab_size == size and model.get_input_embeddings().weight.shape == (size, 16)
            after = model(IDS).logits
            assert after.shape == (2, 9, size)
            torch.testing.assert_close(after[..., :30], before)
            model.save_pretrained(tmp_path / str(size))
            assert torch.equal(cls.from_pretrained(tmp_path / str(size))(IDS).logits, after)
    assert ("decoder.weight" in model.state_dict()) is not tied


def test_bad_input_is_named():
    masked, causal = build(MatmixForMaskedLM, position="learned"), build(MatmixForCausalLM)
    text, tokens = build(MatmixForSequenceClassification), build(MatmixForTokenClassification)
    whole = MatmixModel(config(mixer="dense", position="none"))
    parted = MatmixModel(config(mixer="ponet(heads=2)", delimiters=(3, 4)))
    no_types = MatmixModel(config(type_vocab_size=0))
    assert no_types(IDS, token_type_ids=torch.zeros_like(IDS)).last_hidden_state.shape == (2, 9, 16)
    long = torch.ones(1, 13, dtype=torch.long)
    for call, message in (
        (lambda: masked(IDS + 29), "token ids must be 0 to 29, got .* to 58"),
        (lambda: masked(IDS, token_type_ids=IDS), "types of tokens must be 0 to 1"),
        (lambda: masked(long), "13 tokens, and learned positions reach 12"),
        (lambda: whole(long), "13 tokens, and the model reaches length=12"),
        (lambda: no_types(IDS, token_type_ids=IDS), "token_type_ids must be a tensor of 0.*type_vocab_size=0"),
        (lambda: masked(IDS, labels=IDS + 10), "labels must be 0 to 29, or -100 .* got 3"),
        (lambda: masked(IDS, labels=IDS[:1]), r"labels must be \(2, 9\), got \(1, 9\)"),
        (lambda: causal(IDS, labels=IDS + 10), "labels must be 0 to 29"),
        (lambda: tokens(IDS, labels=IDS), "labels must be 0 to 2"),
        (lambda: text(IDS, labels=torch.tensor([0, 3])), "labels must be 0 to 2, or -100 .* got 3"),
        (lambda: text(IDS, labels=torch.tensor([0.0, 1.0])), r"labels of a multi_label_.* must be \(2, 3\)"),
        (lambda: masked(IDS, attention_mask=torch.ones(2, 9, 9)), r"attention_mask must be \(B, L\)"),
        (lambda: masked(IDS, inputs_embeds=torch.ones(2, 9, 16)), "give one of input_ids and inputs_embeds"),
        (lambda: masked(IDS, output_attentions=True), "matmix.record"),
        (lambda: parted(inputs_embeds=torch.ones(2, 9, 16)), r"delimiters=\(3, 4\) are token ids"),
        (lambda: MatmixForCausalLM(config()), "needs causal mixers .*Hydra"),
        (lambda: MatmixForSequenceClassification(config(**CAUSAL, pool="first")), "pool='first' reads the first token"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


def test_kinds_of_labels():
    """A number, a class, several: what transformers' `problem_type` says, or the labels where it says nothing."""
    number = build(MatmixForSequenceClassification, num_labels=1)
    logits = number(IDS).logits
    torch.testing.assert_close(
        number(IDS, labels=torch.tensor([1.0, 2.0])).loss, (logits[:, 0] - torch.tensor([1.0, 2.0])).square().mean()
    )
    model = build(MatmixForSequenceClassification)
    logits, several = model(IDS).logits, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    wanted = nn.functional.binary_cross_entropy(logits.sigmoid(), several)
    torch.testing.assert_close(model(IDS, labels=several).loss, wanted)
    # What is not scored counts for nothing, and a part of a batch is divided by the labels of the whole.
    masked = build(MatmixForMaskedLM)
    labels = torch.where(IDS % 2 == 0, IDS, -100)
    logits = masked(IDS).logits
    wanted = -logits.log_softmax(-1).gather(-1, IDS.unsqueeze(-1)).squeeze(-1)[labels != -100]
    torch.testing.assert_close(masked(IDS, labels=labels).loss, wanted.mean())
    torch.testing.assert_close(masked(IDS, labels=labels, num_items_in_batch=40).loss, wanted.sum() / 40)


def test_seeds():
    """Given, two models agree outside of their mixers, heads as well; not given, torch's generator decides."""
    one, other = (MatmixForMaskedLM(config(mixer=mixer)).state_dict() for mixer in ("hydra(head_dim=8)", "identity"))
    for name in other:
        assert torch.equal(one[name], other[name]), name
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(MatmixForMaskedLM(config(seed=None)).state_dict())
    same = [all(torch.equal(drawn[0][name], each[name]) for name in each) for each in drawn]
    assert same == [True, True, False]


def test_generate_is_the_full_forward():
    """64 greedy tokens from the state, and from a prompt padded on the left; beams reorder the state."""
    model = build(MatmixForCausalLM, embedding_std=1.0, length=90).eval()
    done = model.generate(IDS, max_new_tokens=64, do_sample=False)
    assert done.shape == (2, 73)
    assert len(done.unique()) > 8  # no one word over and over
    assert torch.equal(model(done).logits.argmax(-1)[:, 8:-1], done[:, 9:])
    mask = (torch.arange(9) >= torch.tensor([[4], [0]])).long()
    padded = model.generate(IDS, attention_mask=mask, max_new_tokens=20, do_sample=False)
    assert torch.equal(padded[0, 9:], model.generate(IDS[:1, 4:], max_new_tokens=20, do_sample=False)[0, 5:])
    embedded = model.generate(inputs_embeds=model.get_input_embeddings()(IDS), max_new_tokens=8, do_sample=False)
    assert torch.equal(embedded, done[:, 9:17])
    beams = [model.generate(IDS, num_beams=3, max_new_tokens=12, use_cache=use) for use in (True, False)]
    assert torch.equal(*beams)
    # A text in parts.
    first = model(IDS[:, :5], use_cache=True, return_dict=False)[1]
    rest = model(IDS[:, 5:], cache=first).logits
    torch.testing.assert_close(rest, model(IDS).logits[:, 5:])
    # Where a mixer keeps no state, everything is read again.
    full = build(MatmixForCausalLM, mixer="uniform(causal=True)", embedding_std=1.0, length=90).eval()
    assert full.recurrent is all(mixer.traits.recurrent for mixer in full.matmix.encoder.mixers)
    done = full.generate(IDS, max_new_tokens=8, do_sample=False)
    assert torch.equal(full(done).logits.argmax(-1)[:, 8:-1], done[:, 9:])


@pytest.mark.slow
@pytest.mark.parametrize("cls", HEADS[:2])
def test_compiled(cls):
    """In one graph, with padding."""
    model, mask = build(cls).eval(), (torch.arange(9) < torch.tensor([[9], [6]])).long()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(IDS, attention_mask=mask).logits, model(IDS, attention_mask=mask).logits, rtol=1e-4, atol=1e-5
    )
