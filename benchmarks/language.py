"""Language models: tokens per second of pretraining, against transformers' BERT and FNet.

    python -m benchmarks.language [--lengths 128 512] [--tokens 1024] [--depth 12] [--dim 256] [--vocabulary 4000]
        [--only NAME ...] [--budget 4.0] [--threads 2] [--out FILE.md]

A step is what a training step is: forward, masked words' loss, backward, AdamW. `BertForMaskedLM` (its fused attention)
and `FNetForMaskedLM` give their weights to ours, around `attention` and `fnet`, and the losses are compared first: 12
layers of 256 with 4 heads, full rows of random words, 15 % of them targets, no dropout, float32. Ours run twice: with
logits for every word, as transformers has it, so that both sides compute the same; and as `matmix train mlm` pretrains,
with logits for the targets alone, which makes the same loss. `hydra` stands beside them: as many layers of Hydra's
published blocks, which have no perceptron. All models of a length run in turn, and each one's best step counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.measure import best_times, heading, peak_memory, say, table
from matmix import load_published
from sequence.language import MatmixForMaskedLM, shapes

HEAD_DIM, RATE = 64, 0.15
PLAIN = {"dropout": 0.0, "embedding_dropout": 0.0}
PEERS = {"attention": "BertForMaskedLM", "fnet": "FNetForMaskedLM"}
"""Ours, and transformers' of the same weights."""


def peer(name: str, sizes: argparse.Namespace) -> nn.Module:
    """Transformers' model."""
    options = {
        "vocab_size": sizes.vocabulary, "hidden_size": sizes.dim, "num_hidden_layers": sizes.depth,
        "intermediate_size": 4 * sizes.dim, "max_position_embeddings": max(sizes.lengths), "hidden_dropout_prob": 0.0,
    }  # fmt: skip
    if name == "attention":
        heads = {"num_attention_heads": sizes.dim // HEAD_DIM, "attention_probs_dropout_prob": 0.0}
        return transformers.BertForMaskedLM(transformers.BertConfig(**options, **heads))
    return transformers.FNetForMaskedLM(transformers.FNetConfig(**options))


def ours(name: str, sizes: argparse.Namespace) -> MatmixForMaskedLM:
    """The model around a mixer."""
    make = {"attention": shapes.bert, "fnet": shapes.fnet, "hydra": shapes.hydra_bert}[name]
    return MatmixForMaskedLM(make(dim=sizes.dim, depth=sizes.depth, vocab_size=sizes.vocabulary,
                                  length=max(sizes.lengths), **PLAIN))  # fmt: skip


def models(name: str, sizes: argparse.Namespace) -> dict[str, nn.Module]:
    """By who made it, with one set of weights."""
    torch.manual_seed(0)
    if name not in PEERS:
        return {"matmix": ours(name, sizes)}
    theirs = peer(name, sizes)
    return {
        "transformers": theirs,
        "matmix": load_published(ours(name, sizes), theirs.state_dict(), "huggingface/transformers"),
    }


def batch(length: int, sizes: argparse.Namespace) -> dict[str, Tensor]:
    """Rows of random words and the labels of those that are targets."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, sizes.vocabulary, (max(1, sizes.tokens // length), length), generator=generator)
    hidden = torch.rand(ids.shape, generator=generator) < RATE
    return {"input_ids": ids.masked_fill(hidden, 4), "labels": ids.masked_fill(~hidden, -100)}


def training(model: nn.Module, given: dict[str, Tensor]) -> Callable[[], Any]:
    """A step of pretraining."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    model.train()

    def step() -> Tensor:
        with torch.enable_grad():
            optimizer.zero_grad()
            loss: Tensor = model(**given).loss
            loss.backward()
            optimizer.step()
        return loss.detach()

    return step


def measured(length: int, names: Sequence[str], sizes: argparse.Namespace) -> list[list[object]]:
    """A row for each mixer at a length."""
    say(f"length {length}")
    given, works, weights = batch(length, sizes), dict[tuple[str, str], Callable[[], Any]](), dict[str, int]()
    targets = {**given, "places": given["labels"] != -100}
    for name in names:
        pair = models(name, sizes)
        mine = pair["matmix"].eval()
        with torch.no_grad():
            losses = [pair[maker].eval()(**given).loss for maker in pair] + [mine(**targets).loss]
        for loss in losses:
            torch.testing.assert_close(loss, losses[0], rtol=1e-4, atol=1e-4)
        weights[name] = sum(parameter.numel() for parameter in mine.parameters())
        works |= {(name, maker): training(model, given) for maker, model in pair.items()}
        works[name, "targets"] = training(mine, targets)
    found = best_times(list(works.values()), sizes.budget, least=3, most=3 * sizes.budget * len(works))
    speed = {key: given["input_ids"].numel() / seconds for key, seconds in zip(works, found, strict=True)}
    rows = list[list[object]]()
    for name in names:
        keys = [(name, maker) for maker in ("transformers", "matmix", "targets")]
        theirs, every, some = (f"{speed[key]:.4g}" if key in speed else "" for key in keys)
        ratios = [f"{speed[key] / speed[keys[0]]:.2f}" if theirs else "" for key in keys[1:]]
        memory = [f"{peak_memory(works[key]) / 2**20:.3g}" if key in works else "" for key in keys]
        row = (length, name, f"{weights[name]:,}", PEERS.get(name, ""), theirs, every, ratios[0], some, ratios[1])
        rows.append([*row, *memory])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--tokens", type=int, default=1024, help="of a step")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--dim", type=int, default=256, help=f"a multiple of {HEAD_DIM}")
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--only", nargs="*", choices=[*PEERS, "hydra"], default=[*PEERS, "hydra"])
    parser.add_argument("--budget", type=float, default=4.0, help="seconds of every model at a length, at least")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    sizes = parser.parse_args(arguments)
    torch.set_num_threads(sizes.threads)
    transformers.logging.set_verbosity_error()
    rows = [row for length in sizes.lengths for row in measured(length, sizes.only, sizes)]
    command = heading(f"python -m benchmarks.language --threads {sizes.threads} --budget {sizes.budget}")
    text = "\n\n".join((
        "# Language models: tokens a second of pretraining",
        f"{command}, transformers {transformers.__version__}",
        f"{sizes.depth} layers of {sizes.dim}, {sizes.vocabulary:,} words, {sizes.tokens} tokens a step:",
        table(["length", "mixer", "weights", "peer", "tokens/s: transformers", "matmix, every word", "ratio",
               "targets alone", "ratio", "peak MiB: transformers", "matmix", "targets alone"], rows),
    ))  # fmt: skip
    print(text)
    if sizes.out:
        sizes.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
