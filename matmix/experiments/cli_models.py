"""The commands that look at a model without training it: cost, sites, picture. A package of models, or of pictures,
says itself which options these have (see `models.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from inspect import getdoc
from typing import Any

import tyro

from matmix.experiments.cli_options import first, split, subject
from matmix.experiments.cli_words import read as read_words
from matmix.experiments.entries import entries
from matmix.experiments.plugins import import_named
from matmix.spec import hint


def cost(words: Sequence[str]) -> int:
    """Count parameters, multiply-accumulates and FFT operations of one forward of a model or a mixer.

    Name it first: a model, as a name or a call with options, or the spec of a mixer. `--import FILE` names Python
    files or modules to import first; they register mixers.
    """
    from matmix.cost import count
    from matmix.experiments.models import example
    from matmix.inspect.recording import outer_mixers

    what, rest = subject(words, "cost", "model or mixer", _mixer, getdoc(cost))
    made, inputs, options = read_words(
        partial(_mixer, what) if _is_mixer(what) else example(what),
        rest,
        prog=f"matmix cost {what!r}",
        about=getdoc(cost),
    )
    report = count(made, *inputs, **options)
    # A fixed random matrix is a buffer of its mixer; published counts name it beside the parameters.
    frozen = report.parameters - report.trainable
    frozen += sum(buffer.numel() for mixer in outer_mixers(made).values() for buffer in mixer.buffers())
    shapes = ", ".join(" x ".join(map(str, part.shape[1:])) for part in inputs)
    print(f"{what} for one input of {shapes}")
    print(f"parameters        {report.trainable:>18,}" + (f"  and {frozen:,} frozen" if frozen else ""))
    print(f"MACs              {report.macs:>18,}")
    print(f"FFT operations    {report.fft_flops:>18,}  (5 N log2 N for N complex points; two take the time of one MAC)")
    if report.uncounted:
        print(f"not counted: {', '.join(report.uncounted)}")
    return 0


def _mixer(
    spec: tyro.conf.Suppress[str] = "", *, dim: int = 64, length: int = 64, grid: tuple[int, int] | None = None
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A mixer, and tokens for it.

    Args:
        dim: width of a mixer.
        length: tokens of a mixer.
        grid: rows and columns of tokens, instead of a length.
    """
    import torch

    from matmix.mixers import create_mixer

    where = grid or (length,)
    made = create_mixer(spec, dim, where)
    return made, (torch.zeros(1, torch.Size(where).numel(), dim),), {"grid": where}


def sites(words: Sequence[str]) -> int:
    """List the places of a model where tokens mix, and at which level each can be replaced (matmix.surgery).

    Name the model first, such as timm:vit_tiny_patch16_224 or hf:bert. It runs once, for lengths and numbers of calls.
    `--import FILE` names Python files or modules to import first; they register mixers or models.
    """
    from matmix import surgery
    from matmix.experiments.models import as_input, example

    what, rest = subject(words, "sites", "model", _nothing, getdoc(sites))
    model, inputs, options = read_words(example(what), rest, prog=f"matmix sites {what!r}", about=getdoc(sites))
    print(surgery.find(model, example=as_input(inputs, options)))
    return 0


def _nothing() -> None:
    """What has no options before a model is named."""


def _is_mixer(spec: str) -> bool:
    from matmix.mixers import list_mixers
    from matmix.spec import parse_spec

    try:
        return all(call.name in list_mixers() for call in parse_spec(spec))
    except ValueError:  # names of models may have dots
        return False


def picture(words: Sequence[str]) -> int:
    """Draw what a model does with one input. The kind of picture comes first; it has options of its own.

    A package adds kinds through the entry-point group `matmix.pictures`: a function whose keyword arguments, or the
    fields of a dataclass that it takes, are the options of the command, and which returns what is to be printed.
    `--import FILE` names Python files or modules to import first; they register mixers, tasks or models.
    """
    kinds = entries("matmix.pictures")
    listed = ",".join(sorted(kinds))
    sources, words = split(words, "--import")
    import_named(sources)
    kind = first(words)
    if kind is None and {"-h", "--help"} & set(words):
        print(f"usage: matmix picture {{{listed}}} ...\n\n{getdoc(picture)}")
        return 0
    if kind not in kinds:
        raise ValueError(f"name the kind of picture first{hint(kind or '', sorted(kinds))}")
    draw: Callable[..., str] = kinds[kind].load()
    args, where = list(words[1:]), f"matmix picture {kind}"
    print(read_words(draw, args, prog=where, about=None, config=(tyro.conf.OmitArgPrefixes,)))
    return 0
