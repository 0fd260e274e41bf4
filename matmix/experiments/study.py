"""A study is a grid: tasks x recipes x mixers x seeds. It is data, so a report can say exactly what was run.

Take one by name (``STUDIES``), or write one as a file::

    # my_study.py: `study` is a Study or a function that returns one
    from matmix.experiments.study import Study, StudyTask

    study = Study(
        name="recall-length",
        tasks=(StudyTask("recall"), StudyTask("recall", {"length": 128, "vocabulary": 256}, label="recall-128")),
        mixers=("identity", "attention", "ssd", "hydra(expand=1)"),
        seeds=(0, 1, 2, 3, 4),
    )

The same in TOML::

    name = "recall-length"
    mixers = ["identity", "attention", "ssd"]
    [[tasks]]
    task = "recall"
    options = {length = 128, vocabulary = 256}
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from matmix.experiments.config import RunConfig, filling_once
from matmix.experiments.entries import entries
from matmix.experiments.extras import advice
from matmix.experiments.plugins import absolute, absolute_task, fingerprints, import_all, import_code
from matmix.experiments.registry import list_tasks
from matmix.experiments.task import build, check_metric
from matmix.experiments.text import folder_name
from matmix.files import read_json, read_toml
from matmix.mixers import list_mixers
from matmix.ranges import Chance, Count, Seed, Whole, shown
from matmix.settings import Settings
from matmix.spec import hint


@dataclass(frozen=True)
class StudyArm(Settings):
    """A row of one task's table that is more than a spec: a mixer under another name, on other settings.

    A control such as "bag" is the mixer "identity" in a model without positions.
    """

    name: str
    mixer: str = ""
    """Spec; the name where empty."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of the task that differ from those of its other arms."""
    recipe: dict[str, Any] = field(default_factory=dict)
    window: Whole = 0
    """Of an arm that sees near tokens only: how many, over its whole depth. Where such an arm comes as far as the best
    one, the report calls the task local."""

    @property
    def spec(self) -> str:
        return self.mixer or self.name


@dataclass(frozen=True)
class StudyTask(Settings):
    """A task with the settings and recipe values that differ from its defaults. The label names it in tables."""

    task: str
    options: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    specs: dict[str, str] = field(default_factory=dict)
    """What mixers of the study are here, by their names: {"attention": "attention(head_dim=32, rotary=True)"}."""
    arms: tuple[StudyArm, ...] = ()
    """Further rows of this task, its controls; one with the name of a mixer of the study stands for it."""
    model: str = ""
    """What verdicts call the model whose mixers are exchanged; "" where the study has one."""
    data: str = ""
    """What verdicts call the data set; the label where empty. Tasks on one data set (its horizons) are not independent:
    over data sets they count once."""
    surgery: dict[str, Any] = field(default_factory=dict)
    """How mixers come into a model that is built before, as `operation.Surgery` has it: {"level": "module"}."""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(
                f"StudyTask.arms of {self.label or self.task!r} must have different names, got {', '.join(names)}"
            )

    def rows(self, mixers: Iterable[str]) -> list[StudyArm]:
        """The arms of this task in a study of these mixers: theirs first, then its own."""
        mine = {arm.name: arm for arm in self.arms}
        theirs = {mixer: StudyArm(mixer, self.specs.get(mixer, "")) for mixer in mixers}
        return list({**theirs, **mine}.values())


@dataclass(frozen=True)
class StudyRun:
    """One cell of the grid: its label, its folder below the study's, and the configuration that decides its result."""

    setting: str
    mixer: str
    """Name of its arm: the spec, where the study says nothing else."""
    seed: int
    folder: str
    config: RunConfig
    trial: str = ""
    """Its name in the study's tuning."""


@dataclass(frozen=True)
class Study(Settings):
    """Every mixer on every task with every recipe and seed.

    All arms of a setting get the same seeds, data order and, outside of the mixers, the same initial weights, so
    differences are paired by seed. What is tuned is tuned alike: every arm has the same trials.
    """

    name: str
    tasks: tuple[StudyTask, ...]
    mixers: tuple[str, ...]
    """Specs, as in ``"hydra(expand=1)"``."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    recipes: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    """Named changes to the tasks' recipes: ``{"slow": {"lr": 1e-4}, "fast": {"lr": 1e-3}}`` runs everything twice."""
    tuning: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Named changes of the recipe with which every arm is trained: ``{"slow": {"lr": 1e-4}, "fast": {"lr": 1e-3}}``.
    Tables hold, of each arm, the runs of the one that is best on validation in the mean over seeds; the report shows
    what all of them gave. Empty: there is nothing to choose."""
    reference: str = "attention"
    """The arm that differences are taken to, where it is among the mixers."""
    margin: Chance = 0.0
    """The largest change that does not matter in practice, as a share of the reference's score: 0.01 is 1 %. Said
    before the study runs; the report then says of each arm whether it is equivalent, better or worse. 0: none."""
    threads: Count = 1
    """Threads of torch in each run: part of what a run is, since its last digits may depend on them."""
    imports: tuple[str, ...] = ()
    """Python files or modules to import first, in every process: they register mixers."""
    note: str = ""
    """What the study asks; printed in its report."""

    def __post_init__(self) -> None:
        for name in ("tasks", "mixers", "seeds", "recipes"):
            values = list(getattr(self, name))
            if not values:
                raise ValueError(f"study {self.name!r}: {name} is empty: name at least one")
            twice = [value for index, value in enumerate(values) if value in values[:index]]
            if twice:
                raise ValueError(f"study {self.name!r}: {name} must differ, got {shown(twice[0])} twice")
        if "" in self.tuning:
            raise ValueError(f"study {self.name!r}: tuning must name each trial, got an empty name")
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise ValueError(f"study name must be letters, digits, '.', '_' or '-', got {self.name!r}")
        labels = [label for label, *_ in self.settings()]
        rows = [arm.name for task in self.tasks for arm in task.rows(self.mixers)]
        for text in (*labels, *rows, *self.tuning, self.note):
            if text != text.encode(errors="replace").decode():
                raise ValueError(f"study {self.name!r}: names and notes must be of whole characters, got {text!r}")
        if len(set(labels)) < len(labels):
            raise ValueError(f"study {self.name!r}: give its tasks different labels, got {labels}")

    def settings(self) -> list[tuple[str, StudyTask, dict[str, Any]]]:
        """Label, task and recipe changes of every table of the report."""
        return [
            (
                " ".join(filter(None, (task.label or task.task.rpartition("/")[2], name))),
                task,
                {**task.recipe, **changes},
            )
            for task in self.tasks
            for name, changes in self.recipes.items()
        ]

    def runs(self) -> list[StudyRun]:
        """All cells, one seed after the other, so that an unfinished study has whole tables early.

        Raises:
            ValueError: for an unknown task, setting or recipe value.
        """
        plugins = fingerprints(self.imports)
        with filling_once():
            return [
                StudyRun(
                    label,
                    arm.name,
                    seed,
                    run_folder(label, arm.name, seed, trial),
                    RunConfig(
                        task.task,
                        arm.spec,
                        seed,
                        {**task.options, **arm.options},
                        {**recipe, **arm.recipe, **changes},
                        self.threads,
                        plugins,
                        task.surgery,
                    ),
                    trial,
                )
                for seed in self.seeds
                for label, task, recipe in self.settings()
                for arm in task.rows(self.mixers)
                for trial, changes in self.trials().items()
            ]

    def trials(self) -> dict[str, dict[str, Any]]:
        """Name and recipe changes of the runs of one cell: one without a name, where nothing is tuned."""
        return self.tuning or {"": {}}

    def only(self, labels: Iterable[str]) -> Study:
        """The study with these of its tasks, in its order.

        Raises:
            ValueError: for a label that no task has.
        """
        mine = {task.label or task.task: task for task in self.tasks}
        for label in labels:
            if label not in mine:
                raise ValueError(f"study {self.name!r} has no task {label!r}{hint(label, mine)}")
        return dataclasses.replace(self, tasks=tuple(task for label, task in mine.items() if label in set(labels)))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Study:
        """From JSON or TOML values; an unknown key is an error that lists the known ones."""
        tasks = data.get("tasks", ())
        if not isinstance(tasks, list | tuple) or not all(isinstance(task, dict | str) for task in tasks):
            raise ValueError(f"tasks must be a list of names or tables, got {shown(tasks)}")
        return build(cls, {**data, "tasks": tuple(_study_task(task) for task in tasks)})

    def check(self, cells: Iterable[tuple[str, str]] | None = None) -> None:
        """Build the model of every task and mixer once, so that a typing error ends a study before it begins.

        Args:
            cells: labels and arms; only these, where others are done already.

        Raises:
            ValueError: with every task and mixer that cannot be built, and why.
        """
        import_all(self.imports)
        errors = {}
        seed, wanted = self.seeds[0], None if cells is None else set(cells)
        for label, task, recipe in self.settings():
            for arm in task.rows(self.mixers):
                if wanted is not None and (label, arm.name) not in wanted:
                    continue
                options = {**task.options, **arm.options}
                try:
                    for trial in self.trials().values():
                        changes = {**recipe, **arm.recipe, **trial}
                        config = RunConfig(task.task, arm.spec, seed, options, changes, surgery=task.surgery)
                    made = config.make_task()
                    check_metric(made)
                    config.make_model(made, begun=True)
                except Exception as error:
                    errors[f"{arm.name} on {label}"] = f"{type(error).__name__}: {error}"
        if errors:
            lines = "".join(f"\n  {where}: {what}" for where, what in errors.items())
            raise ValueError(f"study {self.name!r} cannot be built:{lines}")


def _study_task(data: dict[str, Any] | str) -> StudyTask:
    if isinstance(data, str):
        return StudyTask(data)
    arms = data.get("arms", ())
    if not isinstance(arms, list | tuple) or not all(isinstance(arm, dict) for arm in arms):
        raise ValueError(f"arms of a task must be a list of tables, got {shown(arms)}")
    return build(StudyTask, {**data, "arms": tuple(build(StudyArm, arm) for arm in arms)})


def quickstart() -> Study:
    """Digits and a small associative recall: what each mixer costs, and which ones can look things up.

    On digits every mixer comes above 90 % accuracy, identity too (pixels alone say much). Recall is solved by
    attention in the few steps that it gets, by ssd and mlp on some seeds; fixed filters stay near "best guess by
    position" and identity near chance. Within ten minutes on two CPU cores.
    """
    wanted = (
        "identity", "attention", "linear_attention", "pooling", "sep_conv", "fnet", "global_filter", "aff", "dense",
        "mlp", "toeplitz", "s4d", "ssd", "hydra",
    )  # fmt: skip
    known = list_mixers()
    return Study(
        name="quickstart",
        tasks=(StudyTask("digits"), StudyTask("recall")),
        mixers=tuple(name for name in wanted if name in known),
        note="Which mixers tell digits apart, which ones can look up a value by its key, and what does each cost?",
    )


FILES = (".py", ".json", ".toml")
STUDIES: dict[str, Callable[..., Study]] = {"quickstart": quickstart}


@cache
def _entries() -> dict[str, EntryPoint]:
    return entries("matmix.studies")


def list_studies() -> list[str]:
    """Names of the studies here and of installed packages (entry-point group `matmix.studies`)."""
    return sorted({*STUDIES, *_entries()})


def find_study(name: str) -> Callable[..., Study]:
    """The function behind a name of `list_studies()`; its arguments, all with defaults, are options of the command.

    Raises:
        ValueError: for an unknown name, or one whose package cannot be imported.
    """
    if name in STUDIES:
        return STUDIES[name]
    if name not in _entries():
        known = [*list_studies(), *list_tasks()]
        raise ValueError(f"unknown study {shown(name)}{hint(name, known)} Or give a .py, .json or .toml file.")
    try:
        found: Callable[..., Study] = _entries()[name].load()
    except ImportError as error:
        raise ValueError(f"study {name!r} cannot be imported: {advice(error)}") from error
    return found


def is_study(source: str) -> bool:
    """Whether it is the name of a study, or that of a file that may hold one."""
    return source in list_studies() or source.endswith(FILES)


def load_study(source: str, **options: Any) -> Study:
    """A study by name, or from a ``.py`` (its ``study``), ``.json`` or ``.toml`` file; ``options`` are those of a name.

    Raises:
        ValueError: for an unknown name, a file of another kind, or a file without a study.
    """
    path = Path(source)
    if not source.endswith(FILES):
        return find_study(source)(**options)
    if not path.is_file():
        raise ValueError(f"there is no study file {path}")
    if path.suffix == ".py":
        study = getattr(import_code(source), "study", None)
        study = study() if callable(study) else study
        if not isinstance(study, Study):
            raise ValueError(f"{path} must define `study`, a Study or a function that returns one")
    else:
        data = read_json(path, "a study", {}) if path.suffix == ".json" else read_toml(path, "a study")
        try:
            study = Study.from_json(data)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    tasks = tuple(dataclasses.replace(task, task=absolute_task(task.task, path.parent)) for task in study.tasks)
    study = dataclasses.replace(study, tasks=tasks)
    # A Python study file may register mixers itself, so every process imports it.
    return with_imports(study, (path.name,) if path.suffix == ".py" else (), path.parent)


def with_imports(study: Study, more: Iterable[str], folder: Path | None = None) -> Study:
    """The study with further imports; relative files are taken from ``folder`` (where absent, the current one)."""
    sources = [absolute(source, folder) for source in (*study.imports, *more)]
    return dataclasses.replace(study, imports=tuple(dict.fromkeys(sources)))


def is_study_folder(folder: Path) -> bool:
    """Whether a folder without a marker is that of a study all the same: it was made before there were any."""
    try:
        Study.from_json(json.loads((folder / "study.json").read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    return True


def run_folder(setting: str, mixer: str, seed: int, trial: str = "") -> str:
    """Where a run lies below its study."""
    names = [folder_name(name) for name in (setting, mixer, *([trial] if trial else []))]
    return "/".join(["runs", *names, f"seed-{seed}"])
