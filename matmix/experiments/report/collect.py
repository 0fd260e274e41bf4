"""Read a study from its run folders. Everything that a report says comes from here."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from matmix.experiments.config import RunConfig
from matmix.experiments.folder import Result
from matmix.experiments.index import Index
from matmix.experiments.manifest import seal_is_broken
from matmix.experiments.plugins import data_only
from matmix.experiments.study import Study, StudyArm, run_folder
from matmix.experiments.task import Scored
from matmix.files import Damaged, Keys, read_json, shaped


@dataclass(frozen=True)
class Run:
    """One run as its folder shows it. Status is that of `Result`, or "unfinished" (no result yet), "missing", or
    "damaged" (a file of it cannot be read)."""

    setting: str
    mixer: str
    seed: int
    folder: Path
    status: str
    result: Result | None
    command: str  # that repeats it, "" where its configuration cannot be built here
    curve: tuple[dict[str, Any], ...] = ()  # the lines of metrics.jsonl
    trial: str = ""  # its name in the study's tuning
    damage: str = ""  # which file cannot be read, and why

    @property
    def score(self) -> float | None:
        """The test metric of a finished run."""
        if self.status != "finished" or self.result is None:
            return None
        return self.result.test.get(self.result.metric)

    @property
    def validation(self) -> float | None:
        """What tuning chooses by, higher is better: the metric on validation, the loss where it has none."""
        if self.score is None or self.result is None:
            return None
        result = self.result
        if result.metric in result.val:
            return result.val[result.metric] * (1 if result.higher_is_better else -1)
        return -result.val["loss"] if "loss" in result.val else None

    @property
    def scored(self) -> Scored | None:
        """What the task of a finished run is told of it."""
        if self.score is None or self.result is None:
            return None
        config, metric = self.result.config, self.result.metric
        naive = {name: scores[metric] for name, scores in self.result.baselines.items() if metric in scores}
        return Scored(self.mixer, config["mixer"], self.seed, self.score, config["options"], self.result.facts, naive)


@dataclass(frozen=True)
class Setting:
    """All runs of one table: a task with its options and recipe."""

    name: str
    runs: tuple[Run, ...]
    """Of a study that tunes: of each arm, those of the trial that was chosen."""
    arms: tuple[StudyArm, ...] = ()
    """The arms of the study; () where no study planned the runs."""
    tried: tuple[Run, ...] = ()
    """The runs of all trials, of a study that tunes."""

    @property
    def mixers(self) -> list[str]:
        return list(dict.fromkeys(run.mixer for run in self.runs))

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.score is not None]

    @property
    def sample(self) -> Result | None:
        """A finished result: metric, baselines and facts are the same in all of them."""
        return next((run.result for run in self.finished), None)

    @property
    def solved_above(self) -> float | None:
        """See `Task.solved_above`: where it is a number, scores of several runs have no mean."""
        return self.sample.solved_above if self.sample else None

    def solved(self, mixer: str) -> list[float]:
        """Test scores of the runs that learnt their task, of a setting with `solved_above`."""
        assert self.sample is not None and self.sample.solved_above is not None
        sign = 1 if self.sample.higher_is_better else -1
        limit = sign * self.sample.solved_above
        return [score for score in self.scores(mixer).values() if sign * score > limit]

    def of(self, mixer: str) -> list[Run]:
        return [run for run in self.runs if run.mixer == mixer]

    def scores(self, mixer: str) -> dict[int, float]:
        return {run.seed: run.score for run in self.of(mixer) if run.score is not None}


@dataclass(frozen=True)
class Collected:
    folder: Path
    study: Study | None
    settings: tuple[Setting, ...]
    sessions: tuple[dict[str, Any], ...]
    problems: list[str]
    """Files beside the runs that cannot be read, and folders that look like runs and are none, in sentences."""

    @property
    def runs(self) -> list[Run]:
        """All of them, of trials that were not chosen too."""
        return [run for setting in self.settings for run in setting.tried or setting.runs]

    def by_task(self) -> dict[str, list[Scored]]:
        """The finished runs of each task, whatever its settings."""
        found: dict[str, list[Scored]] = {}
        for run in (run for setting in self.settings for run in setting.runs):
            if run.scored is not None and run.result is not None:
                found.setdefault(run.result.config["task"], []).append(run.scored)
        return found


def collect(folder: Path) -> Collected:
    """All runs below a folder, and what its study.json planned besides.

    What cannot be read is passed over, and named.

    Raises:
        ValueError: if there is neither a run nor a study.
    """
    problems: list[str] = []
    study = _study(folder / "study.json", problems)
    index = Index(folder)
    runs: dict[str, Run] = {}
    if study is not None:
        planned = _Planned(study, folder)
        for setting, task, _ in study.settings():
            for arm in task.rows(study.mixers):
                for seed, trial in product(study.seeds, study.trials()):
                    where = run_folder(setting, arm.name, seed, trial)
                    runs[where] = _run(index, where, setting, arm.name, seed, planned, trial)
    seen: dict[str, str] = {}  # settings of runs that no study.json names
    for where in sorted(_folders(index, runs, problems)):
        config = index[where].config
        assert config is not None  # `_folders` has looked
        key = json.dumps([config["task"], config["options"], config["recipe"]], sort_keys=True)
        name = seen.setdefault(key, _free(config["task"], seen.values()))
        runs[where] = _run(index, where, _planned(study, where) or name, config["mixer"], config["seed"])
    index.save()
    if not runs:
        why = f" ({problems[0]})" if problems else ""
        raise ValueError(
            f"{folder} must be the folder of a study or of a run: it holds neither a study.json nor a run{why}"
        )
    settings = dict.fromkeys(run.setting for run in runs.values())
    arms = {name: tuple(task.rows(study.mixers)) for name, task, _ in study.settings()} if study else {}
    return Collected(
        folder,
        study,
        tuple(
            _setting(name, tuple(run for run in runs.values() if run.setting == name), arms.get(name, ()))
            for name in settings
        ),
        tuple(_sessions(folder / "sessions", problems)),
        problems,
    )


SESSION: Keys = {
    "started": str, "ended": str | None, "pending": int, "ray": bool, "jobs": int, "threads": int, "command": str,
}  # fmt: skip


def _study(path: Path, problems: list[str]) -> Study | None:
    """The plan; None where there is none that can be read: the folders of the runs tell what was run."""
    try:
        return Study.from_json(read_json(path, "the plan of a study", {"name": str}))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        said = str(error) if isinstance(error, Damaged) else f"{path}: expected the plan of a study, but {error}"
        problems.append(f"{said}. The study command writes it anew.")
        return None


def _sessions(folder: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.json")):
        try:
            found = read_json(path, "the note of a start of the study", SESSION)
            if seal_is_broken(found):
                raise Damaged(path, "the note of a start of the study", "it does not have its checksum")
            more = {name: hint for name, hint in (("margin", float), ("seconds", float)) if name in found}
            yield shaped(found, more, path, "the note of a start of the study")
        except FileNotFoundError:
            continue
        except Damaged as error:
            problems.append(f"{error}. It is passed over.")


def _setting(name: str, runs: tuple[Run, ...], arms: tuple[StudyArm, ...]) -> Setting:
    """A table; where there are trials, of each arm the best one. Trials with more finished runs come first, so that a
    lucky seed of an unfinished one chooses nothing."""
    by_arm: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        by_arm.setdefault(run.mixer, {}).setdefault(run.trial, []).append(run)
    if not any(run.trial for run in runs):
        return Setting(name, runs, arms)
    chosen = []
    for trials in by_arm.values():
        named = {trial: found for trial, found in trials.items() if trial} or trials

        def standing(trial: str, named: dict[str, list[Run]] = named) -> tuple[int, float]:
            found = [run.validation for run in named[trial] if run.validation is not None]
            return len(found), mean(found) if found else -math.inf

        chosen += named[max(named, key=standing)]
    return Setting(name, tuple(chosen), arms, runs)


def _run(
    index: Index,
    where: str,
    setting: str,
    mixer: str,
    seed: int,
    planned: Callable[[str], str] | None = None,
    trial: str = "",
) -> Run:
    folder, found = index.root / where, index[where]
    if found.damage:
        command = planned(where) if planned else ""
        return Run(setting, mixer, seed, folder, "damaged", None, command, (), trial, found.damage)
    result = found.result
    if result is None:
        status = "missing" if found.config is None else "unfinished"
        return Run(setting, mixer, seed, folder, status, None, planned(where) if planned else "", found.curve, trial)
    return Run(setting, mixer, seed, folder, result.status, result, result.reproduce, found.curve, trial)


def _folders(index: Index, planned: Container[str], problems: list[str]) -> set[str]:
    """Folders of runs that nobody planned, named from the root on; a run has none in it. Other programs have a
    `config.json`, too."""
    found = set()
    for folder, below, files in os.walk(index.root):
        if "config.json" not in files:
            continue
        where = Path(os.path.relpath(folder, index.root)).as_posix()
        if where in planned:
            below.clear()
        elif index[where].config is not None:
            found.add(where)
            below.clear()
        elif index[where].damage:
            problems.append(f"{index[where].damage}. The folder is passed over.")
    return found


class _Planned:
    """The command of a run that has no result, by its folder; "" where the study's tasks or files are not here any
    more, or not imported. Made when first asked for: nobody asks in a study that is done."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.runs: dict[str, RunConfig] | None = None

    def __call__(self, where: str) -> str:
        if self.runs is None:
            try:
                with data_only():
                    self.runs = {run.folder: run.config for run in self.study.runs()}
            except Exception:  # foreign code, which may fail in any way: the report is of what was run
                self.runs = {}
        return self.runs[where].command(self.folder / where) if where in self.runs else ""


def _planned(study: Study | None, where: str) -> str | None:
    """The setting of a run that an earlier, larger form of the study made: its folder tells."""
    for setting, *_ in study.settings() if study else ():
        if where.startswith(run_folder(setting, "x", 0).rsplit("/", 2)[0] + "/"):
            return setting
    return None


def _free(name: str, taken: Iterable[str]) -> str:
    names, number = set(taken), 2
    free = name
    while free in names:
        free, number = f"{name} #{number}", number + 1
    return free
