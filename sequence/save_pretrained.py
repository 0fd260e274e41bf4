"""The command `matmix save-pretrained`: a run as a folder of transformers.

It stands outside of `sequence.language`, which loads transformers: `matmix --help` asks each command what it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matmix.experiments.cli_words import read as read_words
from matmix.settings import Settings


@dataclass(frozen=True, kw_only=True)
class _Options(Settings):
    run: Path
    """Folder of a finished run of mlm or glue."""
    out: Path
    """Folder to write."""
    weights: str = "best"
    """"best" on validation, or "final"."""


def save_pretrained(words: Sequence[str]) -> int:
    """Save the model and the tokenizer of a run of mlm or glue as transformers has them: `pipeline` opens the folder.

    matmix save-pretrained --run RUN --out FOLDER
    """

    from matmix.experiments.folder import Result
    from sequence.language.runs import save_pretrained as write

    given = read_words(_Options, words, prog="matmix save-pretrained", about=save_pretrained.__doc__)
    if given.weights not in ("best", "final"):
        raise ValueError(f"weights must be 'best' or 'final', got {given.weights!r}")
    if Result.read(given.run) is None:
        raise ValueError(f"run must be the folder of a finished run, got {given.run}")
    write(given.run, given.out, given.weights)
    print(f"saved {given.out}")
    return 0
