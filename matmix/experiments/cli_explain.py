"""`matmix explain`: which structured matrices the heads of a model are, as a table and a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor
from torch.utils import _pytree as pytree

from matmix.experiments.cli_options import subject
from matmix.experiments.cli_words import read as read_words
from matmix.experiments.models import as_input, example
from matmix.experiments.progress import watch
from matmix.experiments.weights import load_weights
from matmix.ranges import Count, Positive, Seed, Whole
from matmix.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Look(Settings):
    """What is looked at, and where the answer goes."""

    out: Path
    """Picture to write; its ending picks the format (png, svg, pdf)."""
    json: Path | None = None
    """File for every head and class as JSON."""
    weights: Path | None = None
    """File of weights, one's own or published; absent: those that the model is built with, random ones of seed 0."""
    source: str = ""
    """owner/repo of the published code that wrote them; absent: found by the names of the weights."""
    inputs: Path | None = None
    """File of inputs, the batch first: a tensor (.npy, .pt), or tensors by the names of the model's arguments (.pt,
    .safetensors). Absent: noise of the shape of the model's example, and its whole numbers in other orders."""
    where: tuple[str, ...] = ("all",)
    """Sites: names or their ends, globs, kinds."""
    layers: tuple[Whole, ...] = ()
    """Numbers of layers; absent: all."""
    classes: tuple[str, ...] = ()
    """Classes of matrices, such as toeplitz or "low_rank(4)"; absent: all."""
    tolerance: Positive = 0.05
    """Largest relative error of a class that is said to fit."""
    samples: Count = 8
    """Inputs that the model gets."""
    max_heads: Count = 16
    """Heads of a site that are looked at."""
    max_tokens: Count = 256
    """Sites with more tokens are skipped: the work grows with their cube."""
    max_rows: Count = 24
    """Heads in the picture."""
    seed: Seed = 0
    """Of the inputs that are made."""
    quiet: bool = False
    """Show no progress; a terminal shows a bar."""


def explain(words: Sequence[str]) -> int:
    """Say which structured matrices the heads of a model are (matmix.surgery.explain), in a table and a picture.

    Name the model first, such as "timm:vit_tiny_patch16_224(pretrained=True)" or "hf:bert(num_hidden_layers=2)".
    `--import FILE` names Python files or modules to import first; they register mixers.
    """
    from matmix import surgery

    what, rest = subject(words, "explain", "model", Look, getdoc(explain))
    torch.manual_seed(0)
    model: Any = Annotated[Any, tyro.conf.arg(constructor=example(what))]
    given: Any = read_words(
        make_dataclass("Explain", [("example", model), ("explain", Look)]),  # the options of the model, and ours
        rest,
        prog=f"matmix explain {what!r}",
        about=getdoc(explain),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    (model, args, kwargs), look = given.example, given.explain
    if look.weights:
        load_weights(model, look.weights, look.source)
    inputs = drawn(as_input(args, kwargs), look.samples, look.seed) if look.inputs is None else read_inputs(look.inputs)
    look.out.parent.mkdir(parents=True, exist_ok=True)
    with watch("explain", quiet=look.quiet or not sys.stdout.isatty()) as progress:
        found = surgery.explain(
            model,
            [pytree.tree_map(lambda t: t[: look.samples], inputs)],
            "all" if look.where == ("all",) else look.where,
            classes=look.classes or None,
            tolerance=look.tolerance,
            samples=look.samples,
            max_heads=look.max_heads,
            max_tokens=look.max_tokens,
            progress=progress,
            layers=look.layers or None,
        )
    print(found)
    if look.json:
        found.to_json(look.json)
    print(found.picture(look.out, max_rows=look.max_rows, title=what))
    return 0


def drawn(example: Any, samples: int, seed: int) -> Any:
    """Inputs of the shape of an example (with a batch of one): noise for numbers, other orders for whole numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(one: Tensor) -> Tensor:
        if one.is_floating_point():
            return torch.randn(samples, *one.shape[1:], generator=generator, dtype=one.dtype)
        flat = one[0].flatten()
        orders = [torch.randperm(len(flat), generator=generator) for _ in range(samples)]
        return flat[torch.stack(orders)].view(samples, *one.shape[1:])

    return pytree.tree_map(draw, example)


def read_inputs(path: Path) -> Any:
    """A tensor, or tensors by name, from a file.

    Raises:
        ValueError: for a file that cannot be read or holds anything else.
    """
    if not path.is_file():
        raise ValueError(f"--inputs: there is no file {path}")
    try:
        if path.suffix == ".npy":
            import numpy as np

            found: Any = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"--inputs: {path} cannot be read: {str(error).strip().partition(chr(10))[0]}") from error
    parts = list(found.values()) if isinstance(found, dict) else [found]
    if not parts or not all(isinstance(part, Tensor) and part.dim() for part in parts):
        raise ValueError(f"--inputs: {path} holds no tensor and no dict of tensors, but a {type(found).__name__}")
    if len({part.shape[0] for part in parts}) > 1:
        raise ValueError(f"--inputs: {path} holds batches of several sizes: {[part.shape[0] for part in parts]}")
    return found
