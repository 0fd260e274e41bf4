"""The commands about studies: study, report."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from inspect import getdoc, signature
from pathlib import Path
from typing import Any, Literal, get_type_hints

import tyro

from matmix.experiments.cli_options import Imports, OfTask, first, named, parse, say, split
from matmix.experiments.cli_words import read as read_words
from matmix.experiments.config import slug
from matmix.experiments.output import complain
from matmix.experiments.plugins import import_named, say_imports
from matmix.experiments.registry import list_tasks
from matmix.experiments.study import (
    Study,
    StudyTask,
    find_study,
    is_study,
    is_study_folder,
    list_studies,
    load_study,
    with_imports,
)
from matmix.folders import claim
from matmix.ranges import Amount, Chance, Count, Whole
from matmix.settings import Settings


def study(words: Sequence[str]) -> int:
    """Run a study, as far as it is not done, and write its report: a named one, a file, or mixers on one task.

    matmix study quickstart; matmix study mine.toml;
    matmix study digits --mixers attention pooling identity --seeds 5 --task.dim 64
    """
    what = first(words)
    if not is_study(what or ""):
        import_named(named(words, "--import"))  # they may register the task
    # A study may have the name of its task (`mad`), and is meant then.
    if (what in list_tasks() and what not in list_studies()) or ":" in (what or ""):
        name, given, changed = parse(words, _TaskStudy, "study", study.__doc__)
        if not given.mixers:
            raise ValueError("name the mixers: --mixers attention pooling ...")
        found = Study(
            name=slug(name.rpartition(":")[2]),
            tasks=(StudyTask(name, asdict(given.task), changed),),
            mixers=given.mixers,
            seeds=tuple(range(3 if given.seeds is None else given.seeds)),
            reference=given.reference or ("attention" if "attention" in given.mixers else given.mixers[0]),
            margin=given.margin or 0.0,
        )
        found = with_imports(found, given.imports)
        say(given.task)
    else:
        if what is not None and not is_study(what):
            find_study(what)  # which says what there is
        own = _options(what or "")
        if (what or "").endswith(".py"):
            say_imports([what or ""])
        options: Any = make_dataclass("Study", own, bases=(_NamedStudy,), frozen=True, kw_only=True)
        about = getdoc(find_study(what or "") if own else study)
        given = read_words(options, words, prog=f"matmix study {what if own else ''}".strip(), about=about)
        found = with_imports(
            load_study(given.source, **{name: getattr(given, name) for name, *_ in own}), given.imports
        )
        found = found.only(given.tasks) if given.tasks else found
        changes: dict[str, Any] = {"mixers": given.mixers, "reference": given.reference}
        changes["seeds"] = None if given.seeds is None else tuple(range(given.seeds))
        changes["margin"] = given.margin
        keep = {key: value for key, value in changes.items() if value not in (None, "", ()) or key == "seeds"}
        found = dataclasses.replace(found, **{key: value for key, value in keep.items() if value is not None})
    if given.equal:
        from matmix.experiments.equal import equal_arms

        found = equal_arms(found, given.equal, given.by, say=complain)
    elif given.by:
        raise ValueError(f"by={given.by!r} is what arms are made equal by: say --equal parameters or --equal macs, too")
    return _submit(found, given, words) if given.slurm else _run_study(found, given)


def _options(name: str) -> list[tuple[str, Any, Any]]:
    """The arguments of the function behind a named study, as fields of the command."""
    if name not in list_studies():
        return []
    function = find_study(name)
    kinds = get_type_hints(function, include_extras=True)
    return [
        (argument.name, kinds[argument.name], field(default=argument.default))
        for argument in signature(function).parameters.values()
    ]


def _run_study(found: Any, given: _Study) -> int:
    from matmix.experiments.report import write_report
    from matmix.experiments.runner import run_study

    folder = given.out or Path("runs") / found.name
    say_imports([*found.imports, *(task.task.rpartition(":")[0] for task in found.tasks)])
    try:
        how = {name: getattr(given, name) for name in ("jobs", "threads", "worker", "minutes", "track")}
        outcome = run_study(found, folder, ray=_cluster(given), **how)
    except KeyboardInterrupt:
        return 130
    try:
        print(f"report: {write_report(folder)}")
    except OSError as error:  # all runs are done: `matmix report` writes it where there is room
        complain(f"matmix: the report cannot be written: {error}")
        return 1
    return 0 if outcome.complete and not outcome.problems else 1


def _submit(found: Study, given: _Study, words: Sequence[str]) -> int:
    """Hand the same command to Slurm, as workers.

    Raises:
        ValueError: for what a worker is not, and before anything is submitted for a study that cannot be built.
    """
    from matmix.experiments.slurm import submit

    if given.ray is not None or given.worker or (given.jobs or 1) > 1:
        raise ValueError("slurm submits workers, which do one run at a time: say no --ray, --worker, --jobs beside it")
    found.check()
    folder = given.out or Path("runs") / found.name
    claim(folder, "study", is_study_folder)  # before the log files of the workers stand in it
    kept = split(split(words, "--slurm")[1], "--slurm-settings")[1]
    kept = [word for word in kept if not word.startswith(("--slurm=", "--slurm-settings="))]
    command = [sys.executable, "-m", "matmix.experiments.cli", "study", *kept, "--worker"]
    jobs = submit(command, given.slurm, folder / "slurm", given.slurm_settings, given.slurm_cluster)
    print(
        f"{len(jobs)} workers submitted: {', '.join(str(job.job_id) for job in jobs)}; "
        f"what they print: {folder / 'slurm'}"
    )
    print(f"how far they are: matmix report {folder}")
    return 0


def _cluster(given: _Study) -> Any:
    """What was said of Ray, as `run_study` takes it.

    Raises:
        ValueError: for several addresses, what is asked of a cluster without --ray, or a file of runtime_env that holds
            no table.
    """
    from matmix.experiments.cluster import Cluster

    if given.ray is None:
        asked = [name for name in ("gpus", "memory", "runtime_env") if getattr(given, name)]
        if asked:
            raise ValueError(f"{asked[0]} is asked of a Ray cluster: say --ray, too")
        return False
    if len(given.ray) > 1:
        raise ValueError(f"ray must be one address, or nothing, got {' '.join(given.ray)}")
    environment = {}
    if given.runtime_env:
        try:
            environment = json.loads(given.runtime_env.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"runtime_env: {given.runtime_env} cannot be read: {error}") from None
        if not isinstance(environment, dict):
            raise ValueError(f"runtime_env: {given.runtime_env} must hold a table as Ray's runtime_env is, in JSON")
    return Cluster("".join(given.ray), given.gpus, given.memory, environment)


def report(words: Sequence[str]) -> int:
    """Write the report of a study from its run folders."""
    given = read_words(_Report, words, prog="matmix report", about=report.__doc__)
    import_named(given.imports)
    from matmix.experiments.report import write_report

    print(f"report: {write_report(given.folder, pictured=given.pictured, nemenyi=given.nemenyi)}")
    return 0


@dataclass(frozen=True)
class _Report(Settings):
    folder: tyro.conf.Positional[Path]
    """Of the study."""
    imports: Imports = ()
    """Python files or modules to import first: for pictures of their mixers. What the folder names is not imported."""
    pictured: Whole | None = None
    """Settings that have pictures. Default: all of up to 24, and 4 of more. The tables are of all."""
    nemenyi: bool = False
    """Nemenyi's test for ranks over data sets in place of Wilcoxon's with Holm's correction. What it says of two arms
    depends on which others are in the study."""


@dataclass(frozen=True, kw_only=True)
class _Study(Settings):
    """Options of every study."""

    out: Path | None = None
    """Folder of the study. Default: runs/NAME."""
    mixers: tuple[str, ...] = ()
    """Specs of the mixers; where the study names some, these are taken instead."""
    seeds: Count | None = None
    """Take this many seeds, 0 and up (3 where the study names none)."""
    reference: str = ""
    """The mixer that differences are taken to. Default: attention, or the first one."""
    margin: Chance | None = None
    """The largest change that does not matter in practice, as a share of the reference's score: 0.01 is 1 %. Then the
    report says of each arm whether it is equivalent, better or worse."""
    equal: Literal["", "parameters", "macs"] = ""
    """Give all arms the parameters, or the multiply-accumulates, of the reference, by the number that `by` names."""
    by: str = ""
    """The number of the model that is set for each arm, with the step that it goes in where that is not 1: hidden,
    dim=8, mlp_ratio=0.0625."""
    jobs: Count | None = None
    """Runs at once. Default: one for each core."""
    minutes: Amount = 0.0
    """Stop after so many minutes, as Ctrl-C does; the same command goes on. 0 = when all is done."""
    threads: Count | None = None
    """Threads of torch in each run (1 where the study names none): part of what a run is."""
    track: str = ""
    """Tell a tracker of accelerate what is logged, too: "tensorboard" writes in the folder of each run."""
    worker: bool = False
    """Be one of any number of such processes, on machines that share the folder: each takes what is free."""
    slurm: Whole = 0
    """Submit so many workers to Slurm, and leave; 0 = do the runs from here."""
    slurm_settings: tuple[str, ...] = ()
    """What submitit tells Slurm: timeout_min=600 slurm_partition=gpu gpus_per_node=1."""
    slurm_cluster: Literal["slurm", "local"] = "slurm"
    """"local": workers of this machine, to try it out."""
    ray: tuple[str, ...] | None = None
    """Spread the runs over a Ray cluster: that of an address ("auto", HOST:PORT); alone, the one that RAY_ADDRESS
    names, or a new one on this machine."""
    gpus: Amount = 0.0
    """GPUs that each run asks of the cluster; a fraction puts several runs on one."""
    memory: Amount = 0.0
    """GiB of memory that each run asks of the cluster; 0 = none in particular."""
    runtime_env: Path | None = None
    """JSON file with Ray's runtime_env: packages and variables that the cluster's workers need."""


@dataclass(frozen=True, kw_only=True)
class _NamedStudy(_Study):
    source: tyro.conf.Positional[str]
    """Name of a study, such as quickstart; a .py, .toml or .json file; or the name of a task, see above."""
    tasks: tuple[str, ...] = ()
    """These tasks of the study alone, by their names in it."""
    imports: Imports = ()
    """Python files or modules to import first; they register mixers."""


@dataclass(frozen=True, kw_only=True)
class _TaskStudy(_Study, OfTask):
    pass
