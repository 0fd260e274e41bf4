"""What is hidden of a text: its laws over all inputs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sequence.data.labels import IGNORED
from sequence.language.data.masking import Draws, Shares, draws, masked

VOCABULARY, SPECIAL, MASK = 30, 5, 4
WORDS = torch.arange(VOCABULARY) >= SPECIAL


def text(rows: int, length: int, seed: int) -> torch.Tensor:
    """Ids of words and of special tokens, padding (0) behind."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (rows, length), generator=generator)
    ends = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return ids.masked_fill(torch.arange(length) >= ends, 0)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 5), length=st.integers(1, 9), seed=st.integers(0, 2**40), step=st.integers(0, 2**30),
    rate=st.floats(0.01, 0.99), hidden=st.floats(0, 1), other=st.floats(0, 1),
)  # fmt: skip
def test_laws(rows, length, seed, step, rate, hidden, other):
    ids, shares = text(rows, length, seed % 1000), Shares(hidden, (1 - hidden) * other)
    drawn = draws(seed, step, rows + 2, length + 3)
    x, y = masked(ids, drawn, WORDS, MASK, rate, shares)
    asked = y != IGNORED
    assert torch.equal(y[asked], ids[asked])  # a target is what stood there
    assert WORDS[ids[asked]].all()  # and never a special token or padding
    assert torch.equal(x[~asked], ids[~asked])  # the rest is as it was
    changed = asked & (x != ids)
    assert (WORDS[x] | (x == MASK))[changed].all()  # hidden, or another word: no special token
    # By seed and position: again the same, in part and with more padding too.
    again = masked(ids, draws(seed, step, rows + 2, length + 3), WORDS, MASK, rate, shares)
    assert torch.equal(again[0], x) and torch.equal(again[1], y)
    part = masked(ids[1:], Draws(*(d[1:] for d in drawn)), WORDS, MASK, rate, shares)
    assert torch.equal(part[0], x[1:]) and torch.equal(part[1], y[1:])
    longer = masked(torch.nn.functional.pad(ids, (0, 2)), drawn, WORDS, MASK, rate, shares)
    assert torch.equal(longer[0][:, :length], x) and (longer[1][:, length:] == IGNORED).all()
    assert not torch.equal(draws(seed, step + 1, 4, 4).chosen, draws(seed, step, 4, 4).chosen)


def test_rates():
    """Of 200,000 words 15 % are targets, and of these 80, 10 and 10 % hidden, another and as they were: each within
    four standard deviations."""
    ids = torch.full((200, 1000), 7)
    x, y = masked(ids, draws(0, 0, 200, 1000), WORDS, MASK, 0.15, Shares())
    asked = y != IGNORED
    count = int(asked.sum())
    assert abs(count / 2e5 - 0.15) < 4 * (0.15 * 0.85 / 2e5) ** 0.5
    others = 1 - 1 / (VOCABULARY - SPECIAL)  # one of the words drawn is the one that stood there
    for found, share in ((x[asked] == MASK, 0.8), ((x[asked] != MASK) & (x[asked] != 7), 0.1 * others)):
        assert abs(int(found.sum()) / count - share) < 4 * (share * (1 - share) / count) ** 0.5
    replaced = x[asked & (x != MASK) & (x != 7)]
    assert set(replaced.tolist()) == set(range(SPECIAL, VOCABULARY)) - {7}  # every word is drawn
