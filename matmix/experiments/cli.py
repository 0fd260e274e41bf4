"""The command `matmix`. Each command imports what it needs when it runs: `list` and `show` run with the core alone.

Installed packages add commands of their own (see `cli_packages`).
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from matmix.experiments.cli_packages import describe, find_command, list_commands
from matmix.experiments.output import complain, drop, fill_descriptors, steady
from matmix.ops.signals import HANG_UP, stoppable
from matmix.spec import hint

COMMANDS = {
    "list": ("matmix.experiments.cli_list:list_", "List the mixers, or the tasks."),
    "show": ("matmix.experiments.cli_list:show", "Draw the matrices of a freshly made mixer, one panel a head."),
    "train": ("matmix.experiments.cli_train:train", "Train one model, or one mixer, on one task."),
    "evaluate": ("matmix.experiments.cli_train:evaluate", "Score weights from a file on a split of a task."),
    "study": ("matmix.experiments.cli_study:study", "Run a study, as far as it is not done, and write its report."),
    "report": ("matmix.experiments.cli_study:report", "Write the report of a study from its run folders."),
    "verify": ("matmix.experiments.cli_verify:verify", "Say which finished files are damaged, and how to repair them."),
    "data": ("matmix.experiments.cli_data:data", "Say what of some data sets a folder has, lacks, or has damaged."),
    "cost": ("matmix.experiments.cli_models:cost", "Count what a forward of a model or a mixer costs."),
    "sites": ("matmix.experiments.cli_models:sites", "List where tokens mix in a model."),
    "explain": ("matmix.experiments.cli_explain:explain", "Say which structured matrices the heads of a model are."),
    "picture": ("matmix.experiments.cli_models:picture", "Draw what a model does with one input."),
}
"""Where a command stands, a function from its words to the exit status, and what it does."""

LONGEST_WORD = 1000
"""Characters of a word in a message."""
RENAMED = {"--tensorboard": "--track tensorboard"}
"""Options that had another word before, and the word that they have."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status: 2 for wrong input, 130 after Ctrl-C, 129 when the terminal
    was closed, 141 when the reader of its output went away and 1 when that could not be written for another reason."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    fill_descriptors()
    with steady() as output, stoppable() as heard:
        status = _status(words, heard)
        output.flush()
    error = output.error
    if output.lost and not status:
        status = 141 if isinstance(error, BrokenPipeError) else 1
        if status == 1:
            complain(f"matmix: what was to be printed is lost: {error}")
    if output.lost:
        drop(output.stream)
    sys.exit(status)


def _status(words: Sequence[str], heard: list[int]) -> int:
    try:
        _run(words)
    except SystemExit as end:
        if isinstance(end.code, str):
            complain(end.code)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        return 129 if status == 130 and HANG_UP in heard else status
    except KeyboardInterrupt:
        return 129 if HANG_UP in heard else 130
    raise AssertionError("a command ends with its status")


def _run(words: Sequence[str]) -> NoReturn:
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        sys.exit(0 if words else 2)
    if words[0] not in COMMANDS and words[0] not in list_commands():
        _stop(f"unknown command {words[0]!r}{hint(words[0], [*COMMANDS, *list_commands()])}")
    for word in words:
        if word in RENAMED:
            _stop(f"{word} is now {RENAMED[word]}")
    from matmix.experiments.config import RunError
    from matmix.experiments.extras import advice

    try:
        status = _command(words[0])(words[1:])
    except ImportError as error:
        absent = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        if not isinstance(absent, ModuleNotFoundError) or (absent.name or "matmix").split(".")[0] == "matmix":
            raise
        _stop(f"{words[0]}: {advice(absent)}")
    except (ValueError, RunError, OSError) as error:
        _stop(str(error))
    sys.exit(status)


def _command(name: str) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        return find_command(name)
    module, _, function = COMMANDS[name][0].partition(":")
    found: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), function)
    return found


def _usage() -> str:
    said = {name: text for name, (_, text) in COMMANDS.items()}
    said |= {name: describe(name) for name in list_commands() if name not in said}
    width = max(map(len, said)) + 2
    lines = [f"  {name:{width}}{text}" for name, text in said.items()]
    return "\n".join(["usage: matmix COMMAND ...\n", *lines, "\n`matmix COMMAND --help` shows the options of one."])


def _stop(message: str) -> NoReturn:
    # A word of thousands of characters is known by its beginning.
    short = re.sub(rf"(\S{{{LONGEST_WORD}}})\S+", r"\1...", message)
    complain(f"matmix: {short}")
    sys.exit(2)


if __name__ == "__main__":
    main()
