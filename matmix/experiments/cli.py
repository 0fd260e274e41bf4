"""The command `matmix`. Each command imports what it needs when it runs."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import tyro

from matmix.experiments.cli_models import cost, picture
from matmix.experiments.cli_train import Imports, evaluate, study, train


def list_(
    *,
    tasks: bool = False,
    markdown: bool = False,
    imports: Imports = (),
) -> int:
    """List the mixers: class of matrix, cost, promises, source.

    Args:
        tasks: list the tasks instead.
        markdown: print the mixers as the table of the README.
        imports: Python files or modules to import first; they register mixers.
    """
    from rich.console import Console
    from rich.table import Table

    from matmix.experiments.plugins import import_all
    from matmix.experiments.task import list_tasks, task_class

    import_all(imports)
    if markdown:
        from matmix.mixers.registry import markdown_table

        print(markdown_table())
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    if tasks:
        for title in ("task", "metric", "what it is"):
            table.add_column(title)
        for name in list_tasks():
            cls = task_class(name)
            table.add_row(name, cls.metric, (cls.__doc__ or "").strip().split("\n")[0])
    else:
        from matmix.mixers import list_mixers, mixer_info

        for title in ("mixer", "matrix", "cost", "promises", "source"):
            table.add_column(title, no_wrap=title == "mixer")
        for name in list_mixers():
            info = mixer_info(name)
            traits = info.traits
            words = [word for word in ("causal", "data_dependent", "recurrent", "aligned") if getattr(traits, word)]
            words += [f"{traits.length} length", *([f"mask={traits.mask}"] if traits.mask else [])]
            table.add_row(name, info.matrix, info.cost, ", ".join(words).replace("_", " "), info.source)
    console = Console()
    # Into a file or a pipe nothing is cut: there is no width to fit.
    (console if console.is_terminal else Console(width=1000)).print(table)
    return 0


def show(
    mixer: tyro.conf.Positional[str],
    *,
    out: Path,
    dim: int = 64,
    length: int = 64,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
    imports: Imports = (),
) -> int:
    """Draw the matrices of a freshly made mixer, one panel a head.

    Args:
        mixer: spec, such as "hydra" or "attention(head_dim=16)".
        out: picture to write; its ending picks the format (png, svg, pdf).
        dim: model width D.
        length: number of tokens L.
        grid: rows and columns of an image, instead of a length.
        seed: of weights and tokens.
        imports: Python files or modules to import first; they register mixers.
    """
    import torch

    from matmix.experiments.plugins import import_all
    from matmix.inspect import show as draw
    from matmix.mixers import create_mixer
    from matmix.ops.seed import fork_seed

    import_all(imports)
    shape = grid or (length,)
    out.parent.mkdir(parents=True, exist_ok=True)
    with fork_seed(seed, "mixer"):
        made = create_mixer(mixer, dim, shape)
    x = torch.randn(1, torch.Size(shape).numel(), dim, generator=torch.Generator().manual_seed(seed))
    print(draw(made, out, x, grid=shape))
    return 0


def report(folder: tyro.conf.Positional[Path]) -> int:
    """Write the report of a study from its run folders.

    Args:
        folder: of the study.
    """
    from matmix.experiments.report import write_report

    print(f"report: {write_report(folder)}")
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "list": list_,
    "show": show,
    "train": train,
    "evaluate": evaluate,
    "study": study,
    "report": report,
    "cost": cost,
    "picture": picture,
}
OWN_PARSERS = (train, evaluate, study, picture)  # what options they have depends on their first word


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status: 2 for wrong input, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        sys.exit(0 if words else 2)
    command = COMMANDS.get(words[0])
    if command is None:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        _stop(f"unknown command {words[0]!r}; {hint}")
    from matmix.experiments.folder import RunError

    try:
        if command in OWN_PARSERS:
            status = command(words[1:])
        else:
            status = tyro.cli(command, prog=f"matmix {words[0]}", description=command.__doc__, args=words[1:])
    except (ValueError, RunError, FileNotFoundError) as error:
        _stop(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `matmix list | head`
        sys.stderr.close()
        sys.exit(141)
    sys.exit(status)


def _usage() -> str:
    lines = [f"  {name:10}{(command.__doc__ or '').strip().splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: matmix COMMAND ...\n", *lines, "\n`matmix COMMAND --help` shows the options of one."])


def _stop(message: str) -> NoReturn:
    print(f"matmix: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
