"""Language modelling: the text in its tokens, an evaluation that scores each of them once, bits of known models."""

from __future__ import annotations

import gzip
import itertools
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from matmix.experiments.config import RunConfig
from matmix.experiments.folder import read_metrics
from matmix.experiments.run import execute
from sequence.data.corpus import Bytes, corpus
from sequence.tasks.lm import LM

SHAKESPEARE = (
    Path(os.environ.get("MATMIX_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "tinyshakespeare"
)
TEXT = "Where the naïve bee sucks, there suck I: €5 a day.\nIn a cowslip's bell I lie; 🐝 and on.\n" * 30


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "input.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, file: str) -> str:
    tokenizers = pytest.importorskip("tokenizers", reason="a tokenizer's file is read by the library tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([TEXT], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    inner.save(str(path))
    return str(path)


# ------------------------------------------------------------------ text to tokens


@pytest.mark.parametrize("tokens", ["bytes", "characters", "tokenizer"])
def test_tokens_are_the_text(tokens: str, file: str, request: pytest.FixtureRequest) -> None:
    tokens = request.getfixturevalue("tokenizer") if tokens == "tokenizer" else tokens
    found = corpus(file, tokens)
    whole = TEXT.encode()
    assert "".join(found.coder.decode(stream.tokens) for stream in found.splits.values()) == TEXT
    sizes = [int(stream.sizes.sum(dtype=np.int64)) for stream in found.splits.values()]
    assert sum(sizes) == len(whole) and abs(sizes[0] / len(whole) - 0.9) < 0.01 and abs(sizes[1] - sizes[2]) < 8
    for stream in found.splits.values():
        assert len(stream.sizes) == len(stream.tokens) and stream.tokens.max() < found.coder.vocabulary
    if tokens == "characters":
        assert found.coder.vocabulary == len(set(TEXT))
        assert set(found.splits["train"].sizes.tolist()) == {1, 2, 3, 4}
    elif tokens != "bytes":
        assert len(whole) / sum(len(stream.tokens) for stream in found.splits.values()) > 1.5


def test_published_splits(tmp_path: Path) -> None:
    """A folder has its files; a single one, packed or not, is cut where enwik8 is: 90, 5 and 5 of a hundred."""
    for name, text in (
        ("wiki.train.tokens", "a b"),
        ("wiki.valid.tokens", "c"),
        ("wiki.test.tokens", "d e"),
        ("x.bin", "?"),
    ):
        (tmp_path / name).write_text(text)
    found = corpus(str(tmp_path), "bytes")
    assert {split: found.coder.decode(stream.tokens) for split, stream in found.splits.items()} == {
        "train": "a b", "val": "c", "test": "d e",
    }  # fmt: skip
    (tmp_path / "valid.txt.gz").write_bytes(gzip.compress(b"more"))
    with pytest.raises(ValueError, match=r"needs one text file for val .* and has valid\.txt\.gz, wiki\.valid\.tokens"):
        corpus(str(tmp_path), "bytes")  # what was read before is not what is there now
    text = bytes(range(200)) * 5
    with zipfile.ZipFile(tmp_path / "enwik8.zip", "w") as archive:
        archive.writestr("enwik8", text)
    (tmp_path / "enwik8.gz").write_bytes(gzip.compress(text))
    for name in ("enwik8.zip", "enwik8.gz"):
        splits = corpus(str(tmp_path / name), "bytes").splits
        assert [len(stream.tokens) for stream in splits.values()] == [900, 50, 50]
        assert np.concatenate([stream.tokens for stream in splits.values()]).tobytes() == text


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"fine\nand\xff not\n" * 9)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"text" * 99)[:-9])
    (tmp_path / "wrong.json").write_text("{}")
    for name, tokens, message in (
        ("bad.txt", "characters", r"bad\.txt, bytes 0 to \d+, line 2: the byte '0xff' at 8 is no text; allowed: UTF-8"),
        ("empty.txt", "bytes", r"empty\.txt: it is empty"),
        ("cut.gz", "bytes", r"cut\.gz: it cannot be read"),
        ("none.txt", "bytes", "there is no file or folder"),
        ("bad.txt", "words", "tokens must be 'bytes', 'characters' or a tokenizer's json file, got 'words'"),
        ("bad.txt", "none.json", "there is no file 'none.json'"),
    ):
        with pytest.raises(ValueError, match=message):
            corpus(str(tmp_path / name), tokens)
    assert corpus(str(tmp_path / "bad.txt"), "bytes").coder.vocabulary == 256
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=r"wrong\.json: it cannot be read"):
        corpus(str(tmp_path / "bad.txt"), str(tmp_path / "wrong.json"))


# ------------------------------------------------------------------ the task


@pytest.mark.parametrize(("length", "context"), [(8, 0), (8, 5), (20, 19), (127, 3), (134, 0)])
def test_evaluation_scores_every_token_once(file: str, length: int, context: int) -> None:
    task = LM(data=file, length=length, context=context)
    stream = task.corpus.splits["test"]
    for world in (1, 3):
        places, count = np.zeros(len(stream.tokens), dtype=int), 0
        for rank in range(world):
            for batch in task.batches("test", 4, rank=rank, world=world):
                count += len(batch.x)
                for x, target, size in zip(batch.x, batch.y["token"], batch.y["size"], strict=True):
                    assert torch.equal(x[1:], target[:-1])
                    # Where a piece stands is told by looking for it: the test text repeats only after 100 bytes.
                    row = np.concatenate((x.numpy(), target[-1:].numpy()))
                    at = _find(stream.tokens, row, places, size.numpy())
                    places[at + 1 + np.flatnonzero(size.numpy() >= 0)] += 1
                    assert at == 0 or (size[:context] < 0).all()
        assert places[0] == 0 and (places[1:] == 1).all()
        assert count == 1 + math.ceil((len(stream.tokens) - 1 - length) / (length - context))


def _find(tokens: np.ndarray, row: np.ndarray, places: np.ndarray, sizes: np.ndarray) -> int:
    windows = np.lib.stride_tricks.sliding_window_view(tokens, len(row))
    scored = 1 + np.flatnonzero(sizes >= 0)
    return next(at for at in np.flatnonzero((windows == row).all(1)) if not places[at + scored].any())


def test_training_pieces_follow_from_seed_and_step(file: str) -> None:
    task = LM(data=file, length=16)
    first = list(itertools.islice(task.batches("train", 8, seed=3), 6))
    again = next(task.batches("train", 8, seed=3, start=5))
    shares = [next(task.batches("train", 8, seed=3, start=5, rank=rank, world=2)).x for rank in (0, 1)]
    assert torch.equal(first[5].x, again.x) and torch.equal(torch.stack(shares, 1).flatten(0, 1), again.x)
    assert not torch.equal(first[0].x, first[1].x) and torch.equal(again.x[:, 1:], again.y["token"][:, :-1])


@pytest.mark.parametrize("tokens", ["bytes", "characters", "tokenizer"])
def test_a_model_that_knows_nothing_has_known_scores(tokens: str, file: str, request: pytest.FixtureRequest) -> None:
    """Even odds: perplexity V, log2(V) bits a token, and as many bits a byte as that makes for the bytes scored."""
    tokens = request.getfixturevalue("tokenizer") if tokens == "tokenizer" else tokens
    task = LM(data=file, tokens=tokens, length=8, context=2)
    size, stream = task.corpus.coder.vocabulary, task.corpus.splits["test"]
    metrics = task.metrics()
    for batch in task.batches("test", 5):
        for metric in metrics.values():
            metric.update(*task.prediction(torch.zeros(*batch.x.shape, size), batch))
    bits, count = math.log2(size), len(stream.tokens) - 1
    scores = {name: float(metric.compute()) for name, metric in metrics.items()}
    assert scores["perplexity"] == pytest.approx(size, rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(bits * count / stream.sizes[1:].sum(dtype=np.int64), rel=1e-5)
    if tokens == "characters":
        assert scores["bits_per_character"] == pytest.approx(bits, rel=1e-5)
    known = task.baselines()["frequencies"]
    assert set(known) == set(scores) and known["bits_per_byte"] < scores["bits_per_byte"]
    assert task.facts()["tokens"]["test"] == count + 1 and "input.txt" in task.found()


def test_later_tokens_and_their_statistics_are_refused(file: str) -> None:
    task = LM(data=file, length=16, dim=8, depth=1)
    for mixer in ("hydra(expand=1, head_dim=4, d_state=4)", "attention(head_dim=4)", "fnet"):
        with pytest.raises(ValueError, match="causal"):
            task.model(mixer, 0)
    with pytest.raises(ValueError, match="norm='batch' takes its statistics from later tokens"):
        LM(norm="batch")
    for settings, message in (
        ({"context": 256}, "context must be from 0 to length - 1 = 255"),
        ({"length": 0}, "length"),
    ):
        with pytest.raises(ValueError, match=message):
            LM(**settings)
    with pytest.raises(ValueError, match="which text"):
        LM().facts()
    with pytest.raises(ValueError, match=r"LM\.length=500: val has \d+ tokens, and length \+ 1 are needed"):
        LM(data=file, length=500).facts()


@pytest.mark.parametrize(
    ("mixer", "settings"),
    [("delta_rule(heads=2)", {"conv": 3}), ("attention(causal=True, head_dim=4)", {"position": "sinusoidal"})],
)
def test_no_output_sees_a_later_token(file: str, mixer: str, settings: dict[str, object]) -> None:
    model = LM(data=file, length=16, dim=8, depth=2, **settings).model(mixer, 0)
    one = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    other = one.clone()
    other[:, 9:] = (other[:, 9:] + 1) % 256
    torch.testing.assert_close(model(one)[:, :9], model(other)[:, :9])
    assert (model(one) != model(other))[:, 9:].any()


def test_a_run_learns_the_text(file: str, tmp_path: Path) -> None:
    settings = {"data": file, "length": 32, "dim": 16, "depth": 1}
    options = {"steps": 30, "batch_size": 8, "lr": 2e-2, "log_every": 1, "eval_every": 15}
    config = RunConfig("sequence.tasks.lm:LM", "delta_rule(heads=2)", 0, settings, options)
    result = execute(config, tmp_path)
    assert result.status == "finished", result.error
    losses = [line["loss"] for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert losses[-1] < 0.7 * losses[0]
    assert result.test["bits_per_byte"] < LM(**settings).baselines()["frequencies"]["bits_per_byte"]
    assert result.test["perplexity"] == pytest.approx(2 ** result.test["bits_per_byte"], rel=1e-4)


@pytest.mark.skipif(not SHAKESPEARE.is_dir(), reason="needs tinyshakespeare (MATMIX_DATA names its parent)")
def test_tinyshakespeare_is_read() -> None:
    task = LM(data=str(SHAKESPEARE / "input.txt"), tokens="characters")
    facts = task.facts()
    assert facts["vocabulary"] == 65 and sum(facts["tokens"].values()) == 1_115_394
    assert task.corpus.coder.decode(task.corpus.splits["train"].tokens[:14]) == "First Citizen:"
    assert Bytes().decode(np.frombuffer("é".encode(), dtype=np.uint8)) == "é"
