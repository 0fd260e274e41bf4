"""Pairs of texts for PoNet's sentence structure objective, and the task that trains on it."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from matmix.experiments.config import RunConfig
from matmix.experiments.run import execute
from sequence.language import MatmixForPreTraining, shapes
from sequence.language.mlm_structure import MLMStructure
from sequence.language.structure import Pair, batch_of, text_pairs
from tests.sequence import written
from tests.sequence.written import WORDS

# Sentence n is n * 10, n * 10 + 1, ...: a token says where it is from.
SENTENCES = [list(range(10 * n, 10 * n + 2 + n % 4)) for n in range(1, 400)]


def pairs(seed: int, length: int = 24, sentences: list[list[int]] = SENTENCES) -> list[Pair]:
    return list(text_pairs(sentences, length=length, cls=1, sep=2, generator=np.random.default_rng(seed), short=0.0))


def test_what_two_texts_are_to_each_other() -> None:
    found = [pair for seed in range(12) for pair in pairs(seed)]
    assert pairs(3) == pairs(3) != pairs(4)
    counts = Counter(pair.relation for pair in found)
    assert all(abs(counts[relation] / len(found) - 1 / 3) < 0.06 for relation in range(3))
    for pair in found:
        assert len(pair.ids) == len(pair.types) == len(pair.segments) <= 24
        ends = [at for at, token in enumerate(pair.ids) if token == 2]
        assert pair.ids[0] == 1 and len(ends) == 2 and ends[1] == len(pair.ids) - 1
        assert pair.types == [0] * (ends[0] + 1) + [1] * (ends[1] - ends[0])
        a, b = ([token // 10 for token in text] for text in (pair.ids[1 : ends[0]], pair.ids[ends[0] + 1 : -1]))
        # A segment is a sentence, special tokens are segments, and they are numbered without gaps.
        names = [-1, *a, -2, *b, -3]
        assert pair.segments == np.cumsum([0, *(x != y for x, y in zip(names[1:], names, strict=False))]).tolist()
        assert a == sorted(a) and b == sorted(b)
        if pair.relation < 2:
            first, second = (a, b) if pair.relation == 0 else (b, a)
            assert 0 <= second[0] - first[-1] <= 2
        else:
            assert abs(b[0] - a[-1]) > 1 or abs(a[0] - b[-1]) > 1


def test_odd_documents() -> None:
    assert not pairs(0, sentences=[[5] * 40])  # one sentence has no continuation
    assert {pair.relation for seed in range(9) for pair in pairs(seed, sentences=[[5], [], [6]])} == {0, 1}
    short = list(text_pairs(SENTENCES, length=24, cls=1, sep=2, generator=np.random.default_rng(1), short=1.0))
    assert len(short) > len(pairs(1))
    with pytest.raises(ValueError, match="length: a pair has at least 5 tokens, got 4"):
        pairs(0, length=4)


def test_a_model_learns_it() -> None:
    """Strangers are told from neighbours by the distance of their words; padding has no part in it."""
    torch.manual_seed(0)
    rows = pairs(0, length=20, sentences=[[3 + n // 8 % 2 * 4 + n % 4] * 3 for n in range(1, 300)])
    batch = batch_of(rows, pad=0)
    fields = {"dim": 16, "depth": 1, "vocab_size": 12, "length": 24, "mixer": "ponet(heads=2)", "delimiters": (1, 2)}
    model = MatmixForPreTraining(shapes.ponet(**fields, dropout=0.0, embedding_dropout=0.0)).eval()
    wider = batch_of([*rows, Pair([1, *[5] * 21, 2, 2], [0] * 24, list(range(24)), 0)], pad=0)
    alone, padded = (model(**part).seq_relationship_logits[: len(rows)] for part in (batch, wider))
    torch.testing.assert_close(alone, padded, rtol=1e-4, atol=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(25):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> MLMStructure:
    """Lines of a file as sentences, of seven words that follow one another in a circle."""
    root = tmp_path_factory.mktemp("structure")
    words = str(written.tokenizer(root / "tokenizer.json"))
    (root / "texts").mkdir()
    for split, first, count in (("train", 0, 240), ("valid", 0, 40), ("test", 4, 40)):
        (root / "texts" / f"{split}.txt").write_text(
            "\n".join(" ".join([WORDS[n // 4 % 7]] * 3) for n in range(first, first + count)) + "\n"
        )
    data, cache = str(root / "texts"), str(root / "cache")
    return MLMStructure(data=data, tokens=words, length=24, dim=32, depth=1, draws=2, cache=cache)


def test_batches_of_the_task(task: MLMStructure) -> None:
    first = list(itertools.islice(task.batches("train", 8, seed=5), 12))
    again = list(itertools.islice(task.batches("train", 8, seed=5, start=9), 3))
    for a, b in zip(first[9:], again, strict=True):
        assert all(torch.equal(a.x[name], b.x[name]) for name in a.x) and torch.equal(a.y["words"], b.y["words"])
    ids, mask, words = first[0].x["input_ids"], first[0].x["attention_mask"], first[0].y["words"]
    assert {len(value) for value in (*first[0].x.values(), *first[0].y.values())} == {8} and ids.shape[1] <= 24
    asked = words != -100
    assert 0 < asked.sum() < 0.5 * mask.sum() and mask[asked].all() and (words[asked] > 4).all()
    assert (ids[:, 0] == 2).all() and ((ids == 3).sum(1) == 2).all()  # [CLS], and [SEP] behind each text
    halves = [next(task.batches("train", 8, seed=5, rank=rank, world=2)) for rank in (0, 1)]
    for rank, half in enumerate(halves):
        assert torch.equal(half.y["relation"], first[0].y["relation"][rank::2])
        assert torch.equal(half.y["words"][:, : words.shape[1]], words[rank::2, : half.y["words"].shape[1]])
    whole = [batch.y["relation"] for batch in task.batches("test", 5)]
    assert torch.equal(torch.cat(whole), next(iter(task.batches("test", 1000))).y["relation"])
    assert len(task.windows("train")) > 1.6 * len(replace(task, draws=1).windows("train"))
    assert json.loads(json.dumps(task.facts())) == task.facts()
    for wrong in ({"pad": "packed"}, {"draws": 0}, {"streaming": True}):
        with pytest.raises(ValueError, match=rf"MLMStructure\.{next(iter(wrong))}.* got"):
            replace(task, **wrong)


def test_it_trains_and_says_both_losses(task: MLMStructure, tmp_path: Path) -> None:
    recipe = {"steps": 24, "batch_size": 16, "lr": 0.02, "eval_every": 24, "log_every": 24}
    result = execute(RunConfig("mlm-structure", "ponet(heads=2)", 0, asdict(task), recipe), tmp_path / "run")
    assert result.status == "finished", result.error
    assert result.test["cross_entropy"] < 0.9 * result.baselines["unigram"]["cross_entropy"]
    assert result.val["loss"] == pytest.approx(result.val["loss.words"] + result.val["loss.relation"], rel=1e-4)
