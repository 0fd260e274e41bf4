"""The command `matmix`: list, show, train, study, report. Each command imports what it needs when it runs."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tyro

if TYPE_CHECKING:
    from matmix.experiments.run import Result

Imports = Annotated[tuple[str, ...], tyro.conf.arg(name="import")]


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


def train(words: Sequence[str]) -> int:
    """Train one mixer on one task. The settings of the task are options; so is the recipe.

    A run that was stopped or killed goes on with the same command; a finished one is not run again.
    """
    from matmix.experiments.environment import is_main_process
    from matmix.experiments.plugins import import_all
    from matmix.experiments.progress import watch
    from matmix.experiments.run import RunConfig, execute
    from matmix.experiments.task import Recipe, list_tasks, task_class

    import_all(_named(words, "--import"))
    name = words[0] if words and not words[0].startswith("-") else None
    cls: type[Any] = task_class(name) if name else _AnyTask

    def parse(task: Any, recipe: Recipe) -> Any:
        fields = [("task", cls, field(default=task)), ("recipe", Recipe, field(default=recipe))]
        return tyro.cli(
            make_dataclass("Train", fields, bases=(_Train,), frozen=True, kw_only=True),
            prog=f"matmix train {name or '{' + ','.join(list_tasks()) + '}'}",
            description=train.__doc__,
            args=list(words[1:] if name else words),
        )

    given = parse(cls(), cls().recipe())
    if name is None:
        raise ValueError(f"name the task first: matmix train {{{','.join(list_tasks())}}} --mixer SPEC")
    usual = given.task.recipe()
    given = parse(cls(), usual)  # again: the defaults of the recipe follow from the task's settings
    changed = {key: value for key, value in asdict(given.recipe).items() if value != asdict(usual)[key]}
    if given.steps is not None:
        changed["steps"] = given.steps
    config = RunConfig(name, given.mixer, given.seed, asdict(given.task), changed)
    given.task.model(given.mixer, given.seed)  # a wrong spec ends here, in one line, and leaves no folder
    out = given.out or Path("runs") / _slug(f"{name}-{given.mixer}-seed-{given.seed}")
    main = is_main_process()
    with watch(f"{name} {given.mixer}", quiet=given.quiet or not main) as progress:
        try:
            result = execute(config, out, progress=progress, resume=given.resume)
        except KeyboardInterrupt:
            print(f"stopped; the checkpoint is in {out}. The same command goes on from there.", file=sys.stderr)
            return 130
    if main:
        print(_summary(result, out))
    return 0 if result.status == "finished" else 1


def study(
    source: tyro.conf.Positional[str],
    *,
    out: Path | None = None,
    mixers: tuple[str, ...] = (),
    seeds: int | None = None,
    jobs: int | None = None,
    threads: int = 1,
    ray: bool = False,
    gpus: float = 0.0,
    imports: Imports = (),
) -> int:
    """Run a study, as far as it is not done, and write its report.

    Args:
        source: name of a study, such as quickstart, or a .py, .toml or .json file.
        out: folder of the study. Default: runs/NAME.
        mixers: take these mixers instead of the study's.
        seeds: take this many seeds, 0 and up, instead of the study's.
        jobs: runs at once. Default: one for each core.
        threads: threads of each run.
        ray: spread the runs over a Ray cluster.
        gpus: GPUs that each run asks of the cluster.
        imports: Python files or modules to import first; they register mixers.
    """
    import dataclasses

    from matmix.experiments.plugins import import_all
    from matmix.experiments.report import write_report
    from matmix.experiments.runner import run_study
    from matmix.experiments.study import load_study, with_imports

    import_all(imports)
    found = with_imports(load_study(source), imports)
    if mixers:
        found = dataclasses.replace(found, mixers=mixers)
    if seeds is not None:
        found = dataclasses.replace(found, seeds=tuple(range(seeds)))
    folder = out or Path("runs") / found.name
    try:
        outcome = run_study(found, folder, jobs=jobs, threads=threads, ray=ray, gpus=gpus)
    except KeyboardInterrupt:
        return 130
    print(f"report: {write_report(folder)}")
    return 0 if set(outcome.counts) <= {"finished", "diverged"} else 1


def report(folder: tyro.conf.Positional[Path]) -> int:
    """Write the report of a study from its run folders.

    Args:
        folder: of the study.
    """
    from matmix.experiments.report import write_report

    print(f"report: {write_report(folder)}")
    return 0


@dataclass(frozen=True, kw_only=True)
class _Train:
    """Options of `matmix train` besides the task's own."""

    mixer: str
    """Spec; a pattern such as "ssd*3, attention" is tiled over the depth."""
    seed: int = 0
    """Of the weights, the data order and dropout."""
    steps: int | None = None
    """Number of updates; short for --recipe.steps."""
    out: Path | None = None
    """Folder of the run. Default: runs/TASK-MIXER-seed-N."""
    resume: bool = True
    """Go on from the last checkpoint of an unfinished run."""
    quiet: bool = False
    """Show no progress."""
    imports: Imports = ()
    """Python files or modules to import first; they register mixers or define tasks."""


@dataclass(frozen=True)
class _AnyTask:
    """Stands for the task in `matmix train --help`, before one is named."""

    def recipe(self) -> Any:
        from matmix.experiments.task import Recipe

        return Recipe()


COMMANDS: dict[str, Callable[..., int]] = {
    "list": list_,
    "show": show,
    "train": train,
    "study": study,
    "report": report,
}


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
    from matmix.experiments.run import RunError

    try:
        if command is train:
            status = train(words[1:])
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
    lines = [f"  {name:8}{(command.__doc__ or '').strip().splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: matmix COMMAND ...\n", *lines, "\n`matmix COMMAND --help` shows the options of one."])


def _stop(message: str) -> NoReturn:
    print(f"matmix: {message}", file=sys.stderr)
    sys.exit(2)


def _named(words: Sequence[str], flag: str) -> list[str]:
    """The values behind an option, before the parser that depends on them exists."""
    found: list[str] = []
    taking = False
    for word in words:
        taking = word == flag or (taking and not word.startswith("--"))
        if taking and word != flag:
            found.append(word)
    return found


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._=-" else "-" for letter in text).strip("-")


def _summary(result: Result, out: Path) -> str:
    if result.status != "finished":
        where = f"; the traceback is in {out / 'error.txt'}" if result.status == "failed" else ""
        return f"{result.status} at step {result.step}: {result.error}{where}"
    scores = ", ".join(f"{name} {value:.4g}" for name, value in result.test.items())
    speed = f", {1e3 * result.step_seconds:.1f} ms a step" if result.step_seconds else ""
    return f"test {scores} (best of step {result.best_step}{speed}, {result.parameters:,} parameters); in {out}"


if __name__ == "__main__":
    main()
