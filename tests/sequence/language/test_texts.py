"""Texts, tokenizers and windows: what is read from where, and in which order."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import datasets
import pytest
import torch

from sequence.language.data import windows as module
from sequence.language.data.texts import texts
from sequence.language.data.tokenizer import SPECIALS, fingerprint, special_ids, tokenizer, train_wordpiece
from sequence.language.mlm import MLM
from tests.sequence import written


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> str:
    return str(written.tokenizer(tmp_path_factory.mktemp("words") / "tokenizer.json"))


def tables(folder: Path, **splits: list[str]) -> Path:
    """A folder with a jsonl file for each split."""
    folder.mkdir(exist_ok=True)
    for split, found in splits.items():
        lines = [json.dumps({"text": text}) for text in found]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_a_vocabulary_is_that_of_the_texts():
    """The same texts give the same words and ids in the same order, whatever order their characters have in a set."""
    some = written.sentences(80)
    first, again = (train_wordpiece(some, 60) for _ in range(2))
    assert first.to_str() == again.to_str()
    assert [first.id_to_token(at) for at in range(5)] == list(SPECIALS.values())
    letters = sorted(set("".join(some)) - {" "})
    assert [first.id_to_token(at) for at in range(5, 5 + len(letters))] == letters
    assert first.encode("The CAT", "sat").tokens[0] == "[CLS]" and "[UNK]" in first.encode("Ω").tokens
    with pytest.raises(ValueError, match="vocabulary must be at least"):
        train_wordpiece(some, 20)


def test_tokenizers_by_file_and_folder(words, tmp_path):
    found = tokenizer(words)
    found.save_pretrained(tmp_path / "folder")
    again = tokenizer(str(tmp_path / "folder"))
    assert fingerprint(again) == fingerprint(found) and special_ids(again) == [0, 1, 2, 3, 4]
    (tmp_path / "broken.json").write_text("{}")
    bare = json.loads(Path(words).read_text())
    bare["added_tokens"] = []
    bare["model"]["vocab"] = {word.strip("[]"): at for word, at in bare["model"]["vocab"].items()}
    bare["model"]["unk_token"], bare["post_processor"] = "UNK", None
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    for name, error in (
        (str(tmp_path / "none.json"), "there is no file"),
        (str(tmp_path / "broken.json"), "cannot be read as a tokenizer.json"),
        (str(tmp_path / "bare.json"), r"has no token for pad, cls, sep, mask"),
    ):
        with pytest.raises(ValueError, match=error):
            tokenizer(name)


def test_texts_of_files_and_tables(tmp_path):
    some = written.sentences(20)
    (tmp_path / "a.txt").write_text("\n".join(some[:10]) + "\n\n")
    (tmp_path / "b.txt").write_text("\n".join(some[10:]))
    found = texts(str(tmp_path / "*.txt"))
    assert " ".join(text for split in found.splits.values() for text in split()).split() == " ".join(some).split()
    table = texts(str(tables(tmp_path / "t", train=some)), held_out=3)
    assert [list(table.splits[split]()) for split in ("val", "test", "train")] == [some[:3], some[3:6], some[6:]]
    whole = texts(str(tables(tmp_path / "w", train=some[:9], valid=some[9:12], test=some[12:])), streaming=True)
    assert list(whole.splits["test"]()) == some[12:] and list(whole.splits["train"]()) == some[:9]
    datasets.Dataset.from_dict({"words": some}).save_to_disk(str(tmp_path / "saved"))
    saved = texts(str(tmp_path / "saved"), column="words", held_out=1)
    assert list(saved.splits["train"]()) == some[2:]
    for options, error in (
        ({"data": str(tmp_path / "t"), "column": "words"}, "t train, line 3: the columns are 'text'; allowed: a col"),
        ({"data": str(tmp_path / "t"), "held_out": 0}, "held_out must be at least 1"),
        ({"data": str(tmp_path / "a.txt"), "streaming": True}, "are read whole"),
        ({"data": str(tmp_path / "none.txt")}, "there is no file or folder"),
        ({"data": ""}, "which text"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=error):
            next(texts(**{"held_out": 1, **options}).splits["train"]())


@pytest.mark.parametrize("pad", ["packed", "batch", "length"])
@pytest.mark.parametrize("streaming", [False, True])
def test_batches_follow_from_seed_and_step(pad, streaming, words, tmp_path, monkeypatch):
    """In the middle of a stream too, over its end, and in the shares of two processes."""
    monkeypatch.setattr(module, "BLOCK", 16)  # four batches
    some = written.sentences(40, words=(2, 25))
    data = tables(tmp_path / "t", train=some[:30], valid=some[30:35], test=some[35:])
    task = MLM(data=str(data), streaming=streaming, tokens=words, pad=pad, length=10, cache=str(tmp_path))
    whole = list(itertools.islice(task.batches("train", 4, seed=5), 60))
    for start in (1, 6, 57):
        again = next(task.batches("train", 4, seed=5, start=start))
        assert torch.equal(again.x["input_ids"], whole[start].x["input_ids"]) and torch.equal(again.y, whole[start].y)
    assert not torch.equal(whole[0].y, next(task.batches("train", 4, seed=6)).y)
    for rank in (0, 1):
        share = next(task.batches("train", 4, seed=5, start=6, rank=rank, world=2))
        width = share.y.shape[1]
        assert torch.equal(share.y, whole[6].y[rank::2, :width])
        assert torch.equal(share.x["input_ids"], whole[6].x["input_ids"][rank::2, :width])
    shapes = {batch.y.shape[1] for batch in whole}
    assert shapes == {10} if pad != "batch" else max(shapes) <= 10
    assert any("attention_mask" in batch.x for batch in whole) == (pad != "packed")
    for split in ("val", "test"):  # the same targets whatever the batch
        one, many = (list(task.batches(split, size)) for size in (1, 100))
        targets = [row[row >= 0].tolist() for batch in one for row in batch.y]
        assert targets == [row[row >= 0].tolist() for row in many[0].y] and any(targets)
    unigram = task.baselines()["unigram"]  # below that of words that are equally likely: frequencies say something
    assert unigram["cross_entropy"] < math.log(80 - 5) and 0 <= unigram["accuracy"] < 0.5


def test_windows_hold_every_word_once(words, tmp_path):
    some = written.sentences(30, words=(1, 30))
    data = tables(tmp_path / "t", train=some[:12], valid=some[12:20], test=some)
    tokens = tokenizer(words)
    ids = [tokens(text, add_special_tokens=False)["input_ids"] for text in some]
    task = MLM(data=str(data), tokens=words, pad="batch", length=10, cache=str(tmp_path))
    found = task.windows("test")
    assert found.lengths.max() == 8 and found.lengths.min() > 0
    assert [word for row in range(len(found)) for word in found[row]] == list(itertools.chain(*ids))
    packed = MLM(data=str(data), tokens=words, pad="packed", length=10, cache=str(tmp_path)).windows("test")
    line = [word for text in ids for word in (*text, tokens.sep_token_id)]
    assert [word for row in range(len(packed)) for word in packed[row]] == line[: len(packed) * 8]
    assert len(line) - len(packed) * 8 < 8
    with pytest.raises(ValueError, match=r"tokens, less than a window; allowed: at least 9998, length - 2"):
        MLM(data=str(data), tokens=words, length=10_000, cache=str(tmp_path)).windows("test")
