"""The commands that run a task: train, evaluate, study. The settings of the task and its recipe are options."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from matmix.experiments.folder import Result
    from matmix.experiments.task import Recipe, Task

Imports = Annotated[tuple[str, ...], tyro.conf.arg(name="import")]


def train(words: Sequence[str]) -> int:
    """Train one model, or one mixer, on one task. The settings of the task are options; so is the recipe.

    A run that was stopped or killed goes on with the same command; a finished one is not run again.
    """
    from matmix.experiments.config import RunConfig
    from matmix.experiments.environment import is_main_process
    from matmix.experiments.progress import watch
    from matmix.experiments.run import execute

    name, given, changed = parse(words, _Train, "train", train.__doc__)
    if given.steps is not None:
        changed["steps"] = given.steps
    config = RunConfig(name, given.mixer, given.seed, asdict(given.task), changed)
    given.task.model(given.mixer, given.seed)  # a wrong spec ends here, in one line, and leaves no folder
    words_of_it = [name, given.model, given.mixer, f"seed-{given.seed}"]
    out = given.out or Path("runs") / _slug("-".join(filter(None, words_of_it)))
    main = is_main_process()
    if main and not given.quiet:
        _say(given.task)
    with watch(f"{name} {given.mixer or given.model}", quiet=given.quiet or not main) as progress:
        try:
            result = execute(config, out, progress=progress, resume=given.resume)
        except KeyboardInterrupt:
            print(f"stopped; the checkpoint is in {out}. The same command goes on from there.", file=sys.stderr)
            return 130
    if main:
        print(_summary(result, out))
    return 0 if result.status == "finished" else 1


def evaluate(words: Sequence[str]) -> int:
    """Score weights from a file, one's own or published ones, on a split of a task."""
    from matmix.experiments.scoring import Scorer
    from matmix.experiments.step import new_accelerator
    from matmix.experiments.weights import load_weights

    name, given, _ = parse(words, _Evaluate, "evaluate", evaluate.__doc__)
    model = given.task.model(given.mixer, 0)
    load_weights(model, given.weights, given.source)
    accelerator = new_accelerator(given.recipe.precision)
    if accelerator.is_main_process:
        _say(given.task)
    model = accelerator.prepare_model(model, evaluation_mode=True)
    scores = Scorer(given.task, accelerator, given.recipe.eval_batch_size)(model, given.split)
    if accelerator.is_main_process:
        text = ", ".join(f"{key} {value:.4g}" for key, value in scores.items())
        print(f"{name} {given.split} of {given.weights}: {text}")
    return 0


def study(words: Sequence[str]) -> int:
    """Run a study, as far as it is not done, and write its report: a named one, a file, or mixers on one task.

    matmix study quickstart; matmix study mine.toml;
    matmix study digits --mixers attention pooling identity --seeds 5 --task.dim 64
    """
    from matmix.experiments.plugins import import_all
    from matmix.experiments.study import Study, StudyTask, load_study, with_imports
    from matmix.experiments.task import list_tasks

    named = words[0] if words and not words[0].startswith("-") else None
    if named in list_tasks() or ":" in (named or ""):
        name, given, changed = parse(words, _TaskStudy, "study", study.__doc__)
        if not given.mixers:
            raise ValueError("name the mixers: --mixers attention pooling ...")
        found = Study(
            name=_slug(name.rpartition(":")[2]),
            tasks=(StudyTask(name, asdict(given.task), changed),),
            mixers=given.mixers,
            seeds=tuple(range(3 if given.seeds is None else given.seeds)),
            reference=given.reference or ("attention" if "attention" in given.mixers else given.mixers[0]),
        )
        found = with_imports(found, given.imports)
        _say(given.task)
    else:
        given = tyro.cli(_NamedStudy, prog="matmix study", description=study.__doc__, args=list(words))
        import_all(given.imports)
        found = with_imports(load_study(given.source), given.imports)
        changes: dict[str, Any] = {"mixers": given.mixers, "reference": given.reference}
        changes["seeds"] = None if given.seeds is None else tuple(range(given.seeds))
        keep = {key: value for key, value in changes.items() if value not in (None, "", ()) or key == "seeds"}
        found = dataclasses.replace(found, **{key: value for key, value in keep.items() if value is not None})
    return _run_study(found, given)


def _say(task: Task) -> None:
    """What data were found; beside the results, which go to stdout."""
    text = task.found()
    if text:
        print(text, file=sys.stderr, flush=True)


def _run_study(found: Any, given: _Study) -> int:
    from matmix.experiments.report import write_report
    from matmix.experiments.runner import run_study

    folder = given.out or Path("runs") / found.name
    try:
        outcome = run_study(found, folder, jobs=given.jobs, threads=given.threads, ray=given.ray, gpus=given.gpus)
    except KeyboardInterrupt:
        return 130
    print(f"report: {write_report(folder)}")
    return 0 if set(outcome.counts) <= {"finished", "diverged"} else 1


# ------------------------------------------------------------------ options


@dataclass(frozen=True, kw_only=True)
class _OfTask:
    """Options of every command that is about a task, besides those of the task itself."""

    model: str = ""
    """The model, where the task has several; short for --task.architecture."""
    data: str = ""
    """Where the data are; short for --task.data."""
    preset: Annotated[str, tyro.conf.arg(name="recipe")] = "default"
    """Named recipe, such as "published"; single values are changed by --recipe.lr and so on."""
    imports: Imports = ()
    """Python files or modules to import first; they register mixers or define tasks."""


@dataclass(frozen=True, kw_only=True)
class _Train(_OfTask):
    mixer: str = ""
    """Spec; a pattern such as "ssd*3, attention" is tiled over the depth. Absent: the mixers of the model itself."""
    seed: int = 0
    """Of the weights, the data order and dropout."""
    steps: int | None = None
    """Number of updates; short for --recipe.steps."""
    out: Path | None = None
    """Folder of the run. Default: runs/TASK-MODEL-MIXER-seed-N."""
    resume: bool = True
    """Go on from the last checkpoint of an unfinished run."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True, kw_only=True)
class _Evaluate(_OfTask):
    weights: Path
    """File of weights: safetensors (such as best.safetensors of a run), or a torch file of tensors alone."""
    source: str = ""
    """owner/repo of the published code that wrote them; absent: found by the names of the weights."""
    mixer: str = ""
    """Spec of the mixers, where they are not those of the model itself."""
    split: str = "test"
    """val or test."""

    def __post_init__(self) -> None:
        if self.split not in ("val", "test"):
            raise ValueError(f"split must be 'val' or 'test', got {self.split!r}")


@dataclass(frozen=True, kw_only=True)
class _Study:
    """Options of every study."""

    out: Path | None = None
    """Folder of the study. Default: runs/NAME."""
    mixers: tuple[str, ...] = ()
    """Specs of the mixers; where the study names some, these are taken instead."""
    seeds: int | None = None
    """Take this many seeds, 0 and up (3 where the study names none)."""
    reference: str = ""
    """The mixer that differences are taken to. Default: attention, or the first one."""
    jobs: int | None = None
    """Runs at once. Default: one for each core."""
    threads: int = 1
    """Threads of each run."""
    ray: bool = False
    """Spread the runs over a Ray cluster."""
    gpus: float = 0.0
    """GPUs that each run asks of the cluster."""


@dataclass(frozen=True, kw_only=True)
class _NamedStudy(_Study):
    source: tyro.conf.Positional[str]
    """Name of a study, such as quickstart; a .py, .toml or .json file; or the name of a task, see above."""
    imports: Imports = ()
    """Python files or modules to import first; they register mixers."""


@dataclass(frozen=True, kw_only=True)
class _TaskStudy(_Study, _OfTask):
    pass


@dataclass(frozen=True)
class _AnyTask:
    """Stands for the task in `matmix train --help`, before one is named."""


def parse(
    words: Sequence[str], options: type[_OfTask], command: str, text: str | None
) -> tuple[str, Any, dict[str, Any]]:
    """Task name, the options (with `.task` and `.recipe`), and what of the recipe differs from the task's own.

    They are read twice: the recipe follows from the settings of the task, so its defaults are known after the first
    time only.
    """
    from matmix.experiments.plugins import import_all
    from matmix.experiments.task import Recipe, list_tasks, task_class

    import_all(_named(words, "--import"))
    name = words[0] if words and not words[0].startswith("-") else None
    cls: type[Any] = task_class(name) if name else _AnyTask

    def read(task: Any, recipe: Recipe) -> Any:
        fields = [("task", cls, field(default=task)), ("recipe", Recipe, field(default=recipe))]
        return tyro.cli(
            make_dataclass(command.title(), fields, bases=(options,), frozen=True, kw_only=True),
            prog=f"matmix {command} {name or '{' + ','.join(list_tasks()) + '}'}",
            description=text,
            args=list(words[1:] if name else words),
        )

    given = read(cls(), cls().recipe() if name else Recipe())
    if name is None:
        raise ValueError(f"name the task first: matmix {command} {{{','.join(list_tasks())}}} ...")
    task, usual = _shorthand(given).named_recipe(given.preset)
    given = read(task, usual)
    task = _shorthand(given)
    given = dataclasses.replace(given, task=task)
    default = asdict(task.recipe())
    return name, given, {key: value for key, value in asdict(given.recipe).items() if value != default[key]}


def _shorthand(given: Any) -> Task:
    """The task with --model and --data in their places."""
    task = given.task
    for flag, setting in (("model", "architecture"), ("data", "data")):
        value = getattr(given, flag)
        if value:
            if not any(known.name == setting for known in dataclasses.fields(task)):
                raise ValueError(f"--{flag} {value}: the task {type(task).__name__} has no choice of {flag}")
            task = dataclasses.replace(task, **{setting: value})
    return task


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
