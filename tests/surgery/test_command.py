"""`matmix explain` and `matmix sites`, with models of timm and of transformers by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from matmix.experiments.cli import main
from matmix.experiments.cli_explain import drawn

BERT = "hf:bert(num_hidden_layers=2,hidden_size=24,num_attention_heads=3,vocab_size=40,intermediate_size=24)"
VIT = "timm:vit_tiny_patch16_224(depth=1,embed_dim=24,num_heads=3,num_classes=2)"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit status and all that was printed."""
    with pytest.raises(SystemExit) as done:
        main(words)
    told = capsys.readouterr()
    return int(done.value.code or 0), told.out + told.err


def test_heads_of_models_of_both_libraries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    status, told = run(capsys, "sites", BERT, "--length", "9")
    assert status == 0 and told.count("encoder.layer") >= 2 and " 9 " in told
    torch.save({"input_ids": torch.randint(40, (3, 9)), "attention_mask": torch.ones(3, 9)}, tmp_path / "in.pt")
    few = ("--classes", "uniform", "low_rank(2)", "--json", str(tmp_path / "heads.json"))
    for what, more in (
        (BERT, ("--inputs", str(tmp_path / "in.pt"), "--layers", "1")),
        (VIT, ("--img-size", "32", "--samples", "2")),
    ):
        out = tmp_path / "new" / "heads.png"
        status, told = run(capsys, "explain", what, *more, *few, "--out", str(out))
        assert status == 0 and told.splitlines()[-1] == str(out), told
        assert out.stat().st_size > 20_000
        out.unlink()
        heads = json.loads((tmp_path / "heads.json").read_text())["heads"]
        site = "blocks.0.attn" if what == VIT else "encoder.layer.1.attention.self"
        assert [(head["site"], head["head"]) for head in heads] == [(site, n) for n in range(3)]
        assert {head["inputs"] for head in heads} == {2 if what == VIT else 3}


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    torch.save({"input_ids": torch.zeros(2, 3), "attention_mask": torch.ones(3, 3)}, tmp_path / "uneven.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    out = ("--out", str(tmp_path / "heads.png"))
    for words, message in (
        ((), "name the model first"),
        (("hf:brt", *out), "did you mean bert"),
        (("hf:bert(hidden_size=25)", *out), "got hidden_size=25: The hidden size"),
        (("hf:whisper", *out), "takes input_features"),
        ((BERT, *out, "--inputs", str(tmp_path / "no.pt")), "there is no file"),
        ((BERT, *out, "--inputs", str(tmp_path / "uneven.pt")), "batches of several sizes: [2, 3]"),
        ((BERT, *out, "--inputs", str(tmp_path / "list.pt")), "no dict of tensors, but a list"),
    ):
        status, told = run(capsys, "explain", *words)
        assert status == 2 and message in " ".join(told.replace("│", " ").split()), told


def test_inputs_that_are_made() -> None:
    made = drawn({"x": torch.zeros(1, 2, 3), "ids": torch.arange(6).view(1, 6)}, 4, 0)
    assert made["x"].shape == (4, 2, 3) and made["x"].std() > 0.5
    assert made["ids"].sort(1).values.equal(torch.arange(6).expand(4, -1)) and made["ids"].unique(dim=0).shape[0] > 1
    assert drawn(torch.zeros(1, 2), 3, 0).equal(drawn(torch.zeros(1, 2), 3, 0))
