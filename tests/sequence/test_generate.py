"""Generation by states is what a forward of the whole text says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sequence.encoder import Encoder
from sequence.generate import generate


def language(mixer: str, **options: object) -> Encoder:
    settings = {"dim": 8, "depth": 2, "grid": (40,), "head": "language", "outputs": 11, "seed": 0, **options}
    return Encoder(lambda: nn.Embedding(11, 8), mixer, **settings).eval()


def test_both_ways_draw_the_same_tokens() -> None:
    model, prompt = language("delta_rule(heads=2)", conv=2).double().train(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    for settings in ({"temperature": 0}, {"seed": 3}, {"temperature": 2.0, "top_k": 4}):
        step, forward = (generate(model, prompt, 20, way=way, **settings) for way in ("step", "forward"))
        assert (step.way, forward.way) == ("step", "forward") and step.tokens.shape == (2, 23)
        assert torch.equal(step.tokens, forward.tokens) and torch.equal(step.tokens[:, :3], prompt)
        assert step.tokens_per_second == pytest.approx(2 * 19 / step.seconds)
    assert model.training and torch.equal(generate(model, prompt, 0).tokens, prompt)
    assert math.isnan(generate(model, prompt, 1).tokens_per_second)
    for control in ("identity", "value_only", "zero", "elementwise"):  # a state of nothing
        other = language(control)
        found = [generate(other, prompt, 3, way=way, temperature=0).tokens for way in ("step", "forward")]
        assert torch.equal(*found)
    greedy = generate(model, prompt, 5, temperature=0).tokens
    assert torch.equal(generate(model, prompt, 5, top_k=1).tokens, greedy)


def test_where_there_is_no_state_everything_is_read_again() -> None:
    model, prompt = language("toeplitz(causal=True)"), torch.tensor([[1, 2]])
    found = generate(model, prompt, 6, temperature=0)
    assert found.way == "forward"
    for place in range(2, 8):
        assert found.tokens[0, place] == model(found.tokens[:, :place])[0, -1].argmax()
    with pytest.raises(ValueError, match="recurrent mixers"):
        generate(model, prompt, 2, way="step")


def test_learned_positions_end() -> None:
    model, prompt = language("ssd(d_state=4, head_dim=4)", position="learned"), torch.tensor([[1, 2, 3]])
    assert generate(model, prompt, 38).way == "step"
    found = generate(model, prompt, 45, temperature=0)
    assert found.way == "forward"
    assert found.tokens[0, -1] == model(found.tokens[:, -41:-1])[0, -1].argmax()
    with pytest.raises(ValueError, match="41 tokens, and learned positions reach 40"):
        generate(model, prompt, 45, way="step")


def test_what_it_does_not_take() -> None:
    model = language("ssd(d_state=4, head_dim=4)")
    for prompt in (torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 2), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="prompt must be token ids"):
            generate(model, prompt, 2)
    prompt = torch.tensor([[1]])
    with pytest.raises(ValueError, match="way must be 'auto', 'step' or 'forward', got 'fast'"):
        generate(model, prompt, 2, way="fast")
    with pytest.raises(ValueError, match="temperature"):
        generate(model, prompt, 2, temperature=-1.0)
    with pytest.raises(ValueError, match="head='language'"):
        generate(language("ssd(d_state=4, head_dim=4)", head="token"), prompt, 2)
