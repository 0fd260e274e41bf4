"""Generators of the synthetic suites: the published rows for the published seeds, and what the rows promise."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sequence.data import mad, mqar
from sequence.data.continuous_mqar import continuous_rows, laid_out, vectors
from sequence.data.copying import packed_rows, padded_rows, pointer_rows
from sequence.data.induction import induction, induction_rows, shifted

REFERENCE = Path(__file__).parents[1] / "reference" / "sequence"
TOKENS = sorted(path for path in REFERENCE.glob("data_mqar_*.json") if "continuous" not in path.stem)


def load(name: str) -> dict[str, Any]:
    return json.loads((REFERENCE / f"{name}.json").read_text())


def published(data: dict[str, Any], name: str = "output") -> Tensor:
    found = data["output"] if name == "output" else data["outputs"][name]
    return torch.tensor(found["values"]).view(found["shape"])


# ------------------------------------------------------------------ MQAR


@pytest.mark.parametrize("path", TOKENS, ids=lambda path: path.stem)
def test_published_mqar(path: Path) -> None:
    data = json.loads(path.read_text())
    given = data["config"]
    kind = next((name for name in ("compositional", "forgetting") if name in path.stem), "plain")
    more = [given["num_updates"]] if "num_updates" in given else []
    x, y = mqar.fixed(
        getattr(mqar, kind),
        given["num_examples"],
        given["vocab_size"],
        given["input_seq_len"],
        given["num_kv_pairs"],
        given.get("power_a", 0.01),
        *more,
        fill=given["random_non_queries"],
        # The fillers of one fixture follow from another seed than its keys.
        seed=given["seed"],
        fill_seed=given.get("torch_manual_seed"),
    )
    assert torch.equal(x, published(data)) and torch.equal(y, published(data, "labels"))


@pytest.mark.parametrize("name", ["data_mqar_continuous_v24_kv4", "data_mqar_continuous_v24_kv3_passes2_shared"])
def test_published_continuous_mqar(name: str) -> None:
    data = load(name)
    given = data["config"]
    keys, values, labels = continuous_rows(
        given["num_examples"],
        given["vocab_size"],
        given["num_kv_pairs"],
        given["num_passes"],
        own_mapping=given.get("per_sequence_mapping", True),
        seed=given["seed"],
    )
    half = given["vocab_size"] // 2
    assert torch.equal(keys, published(data)) and torch.equal(labels, published(data, "labels"))
    assert torch.equal(torch.where(values < 0, values, values + half), published(data, "value_rows"))
    table = vectors(given["vocab_size"], 8, seed=0)
    x = laid_out(keys, values, table)
    assert x.shape == (*keys.shape, 16) and torch.equal(x[..., :8], table[0][keys])
    assert (x[:, -given["num_kv_pairs"] :, 8:] == 0).all() and torch.equal(x[0, 0, 8:], table[1][values[0, 0]])


# ------------------------------------------------------------------ MAD

MAD = {
    "in_context_recall": "recall", "in_context_recall_single": "recall", "noisy_in_context_recall": "noisy_recall",
    "fuzzy_in_context_recall": "fuzzy_recall", "selective_copying": "selective_copying",
    "compression": "compression", "memorization": "memorization",
}  # fmt: skip


def mad_settings(given: dict[str, Any]) -> mad.MadSettings:
    return mad.MadSettings(
        given["vocab_size"], given["seq_len"], given["frac_noise"], given["noise_vocab_size"],
        given["num_tokens_to_copy"] or 16, given["k_motif_size"], given["multi_query"],
    )  # fmt: skip


@pytest.mark.parametrize("name", MAD)
def test_published_mad(name: str) -> None:
    data = load(f"data_mad_{name}")
    given = data["config"]
    found = mad.mad(mad.KINDS[MAD[name]], mad_settings(given), 3, 3, 2, seed=given["seed"])
    for split, (x, y) in {"test": ("output", "labels"), "train": ("train_inputs", "train_labels")}.items():
        assert torch.equal(found[split][0], published(data, x)), split
        assert torch.equal(found[split][1], published(data, y)), split
    assert len(found["val"][0]) == 2 and not torch.equal(found["val"][0], found["test"][0][:2])
    if "kv_map" in data["outputs"]:
        assert mad.memory(given["vocab_size"], given["seed"]) == [
            tuple(pair) for pair in published(data, "kv_map").tolist()
        ]


def test_published_delay() -> None:
    data = load("data_mad_copying")
    given = data["config"]
    settings = mad.MadSettings(given["vocab_size"], given["seq_len"], copied=given["num_tokens_to_copy"])
    x, y = mad.mad(mad.copying, settings, given["num_examples"], 0, seed=given["seed"])["train"]
    assert torch.equal(x, published(data)) and torch.equal(y, published(data, "labels"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MAD if not name.endswith("single")])
def test_published_mad_at_full_size(name: str) -> None:
    """Every number of both splits at the published size, by its checksum."""
    case = load("data_mad_baseline_checksums")["cases"][name]
    given = case["config"]
    settings, sizes = mad_settings(given), (given["num_train_examples"], given["num_test_examples"])
    found = mad.mad.__wrapped__(mad.KINDS[MAD[name]], settings, *sizes, seed=given["seed"])
    for split in ("train", "test"):
        for tensor, what in zip(found[split], ("inputs", "labels"), strict=True):
            digest = hashlib.sha256(tensor.numpy().astype("<i8").tobytes()).hexdigest()
            assert digest == case["sha256"][f"{split}_{what}"], f"{split} {what}"


# ------------------------------------------------------------------ induction and copying


def test_published_induction() -> None:
    data = load("data_induction_head")
    given = data["config"]
    rows = induction_rows(
        np.random.default_rng(given["seed"]), given["num_examples"], given["vocab_size"], given["input_seq_len"],
        given["induction_len"], given["induction_num_triggers"],
    )  # fmt: skip
    x, y = shifted(rows, given["induction_len"], train=False)
    assert torch.equal(x, published(data)) and torch.equal(y, published(data, "labels"))
    assert torch.equal(shifted(rows, given["induction_len"], train=True)[1], published(data, "train_labels"))
    x, y = induction(60, 6, 4, seed=3, train=False)
    assert len(torch.cat([x, y[:, -1:]], 1).unique(dim=0)) == 60
    with pytest.raises(ValueError, match="only 1 different rows found"):
        induction(2, 3, 3)


@pytest.mark.parametrize("form", ["copy", "prefix_ngram", "suffix_ngram"])
def test_published_copying(form: str) -> None:
    data = load("data_copying_string")
    given = data["config"]
    x, y = padded_rows(
        np.random.RandomState(given["seed"]), given["batch_size"], given["sequence_length"], form=form,
        letters=given["vocab_size"], shortest=given["min_length"], longest=given["max_length"],
        ngram=given["n_gram"], answer=0 if form == "copy" else given["length_answer"],
    )  # fmt: skip
    ids = published(data, "output" if form == "copy" else f"{form}_ids")
    mask = published(data, "copy_mask" if form == "copy" else f"{form}_mask").bool()
    assert torch.equal(x, ids[:, :-1]) and torch.equal(y, ids.masked_fill(~mask, -100)[:, 1:])


def test_packed_copying_is_examples_in_a_row() -> None:
    x, y = packed_rows(np.random.RandomState(0), 3, 60, form="copy", letters=26, shortest=5, longest=9)
    assert x.shape == y.shape == (3, 59)
    for tokens, labels in zip(x.tolist(), y.tolist(), strict=True):
        starts = [at for at, token in enumerate(tokens) if token == 26]
        for start, end in pairwise(starts):
            size = (end - start - 3) // 2
            assert tokens[start + 1 : start + 1 + size] == tokens[start + size + 2 : end - 1]
            assert labels[start + 1 + size : end - 1] == tokens[start + size + 2 : end]
            assert set(labels[start : start + 1 + size]) == {-100}
        assert labels[starts[-1] :] == [-100] * (59 - starts[-1]) or tokens[-1] == 28


def test_published_pointers() -> None:
    data = load("data_copying_pointer")
    given = data["config"]
    size = (given["num_examples"], given["vocab_size"], given["data_length"])
    for behind, x, y in ((False, "output", "target"), (True, "suffix_inputs", "suffix_target")):
        rows, targets = pointer_rows(*size, behind=behind, seed=given["seed"])
        width = data["output"]["shape"][1]
        assert [row + [-1] * (width - len(row)) for row in rows] == published(data, x).tolist()
        assert targets == published(data, y).tolist()
