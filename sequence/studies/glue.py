"""GLUE behind a pretraining: `matmix study glue --from runs/mlm --data glue_data --tasks sst2 cola rte --seeds 3`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from matmix.experiments.study import Study, StudyArm, StudyTask
from sequence.language.data.glue import HUB, TASKS
from sequence.language.recipes import FROM_MNLI, HYDRA_TUNING, TUNING, small_glue
from sequence.language.settings import SHAPE
from sequence.studies.mlm import MIXERS


class Before(NamedTuple):
    """What a pretraining leaves: its arms and seeds, settings that this needs too, and where its runs are."""

    specs: dict[str, str]
    """Of its arms, by their names."""
    seeds: tuple[int, ...]
    options: dict[str, Any]
    note: str


def before(source: str) -> Before:
    """A study of mlm that was run, or where none is named what stands in its place: no weights, and BERT's words.

    Raises:
        ValueError: where the folder holds none.
    """
    if not source:
        specs = {mixer: mixer for mixer in (*MIXERS, "identity")}
        return Before(specs, (0,), {"tokens": "bert-base-uncased"}, "")
    file = Path(source) / "study.json"
    if not file.is_file():
        raise ValueError(f"--from: {source} holds no study.json; it is the folder of a study, matmix study mlm")
    study = Study.from_json(json.loads(file.read_text(encoding="utf-8")))
    found = [task for task in study.tasks if task.task == "mlm"]
    if len(found) != 1:
        raise ValueError(f"--from: {source} is a study with {len(found)} tasks mlm; allowed: one")
    specs = {arm.name: arm.spec for arm in found[0].rows(study.mixers)}
    shape = {name: value for name, value in found[0].options.items() if name in SHAPE}
    return Before(specs, study.seeds, {"init_from": source, **shape}, study.note)


def glue(
    pretrained: Annotated[str, tyro.conf.arg(name="from", help="Folder of a study of mlm; else from scratch.")] = "",
    data: Annotated[str, tyro.conf.arg(help="A data set of the hub, or a folder with the released tsv files.")] = HUB,
    protocol: Annotated[str, tyro.conf.arg(help=f"A published recipe, {' or '.join(TUNING)}.")] = "",
    mnli: Annotated[
        str, tyro.conf.arg(help=f"Folder of a study like this with mnli, for {', '.join(FROM_MNLI)} to begin at.")
    ] = "",
    scratch: Annotated[bool, tyro.conf.arg(help="A second arm for each mixer, without pretraining.")] = True,
    steps: Annotated[int, tyro.conf.arg(help="The most steps of a run; 0 = the recipe's.")] = 0,
) -> Study:
    """Every mixer of a pretraining, tuned on each task from its weights and from scratch; the same seeds of both.

    A run begins at the run of its mixer and seed in the folder, with the settings of the model and the tokenizer that
    this has. The most frequent class stands under every table. `--tasks sst2 cola rte` takes these alone; WNLI is among
    the others, whose dev set was made so that no better than the most frequent class can be learnt.
    """
    if protocol and protocol not in TUNING:
        raise ValueError(f"protocol must be one of {', '.join(TUNING)}, got {protocol!r}")
    found = before(pretrained)
    tasks = []
    for name in HYDRA_TUNING if protocol.startswith("hydra") else TASKS:
        options: dict[str, Any] = {"name": name, "data": data}
        if protocol:
            options |= {**TUNING[protocol](name)[0], "protocol": protocol}
        options |= found.options
        recipe = asdict(TUNING[protocol](name)[1]) if protocol else {}
        if steps and steps < (recipe["steps"] if recipe else small_glue(name).steps):
            recipe |= {"steps": steps, "eval_every": max(1, steps // 6)}
        arms = tuple(StudyArm(f"{arm}, from scratch", spec, {"init_from": "", "tokens": pretrained})
                     for arm, spec in found.specs.items())  # fmt: skip
        if mnli and name in FROM_MNLI:
            options |= {"init_from": mnli, "init_task": "mnli", "tokens": pretrained}
            arms = tuple(replace(arm, options={**arm.options, "init_task": ""}) for arm in arms)
        specs = {arm: spec for arm, spec in found.specs.items() if arm != spec}
        tasks.append(StudyTask("glue", options, recipe, name, specs, arms if scratch and pretrained else ()))
    what = f"What do the weights of {pretrained} bring to the tasks of GLUE? {found.note}" if pretrained else ""
    return Study(
        name="-".join(filter(None, ("glue", protocol))),
        tasks=tuple(tasks),
        mixers=tuple(found.specs),
        seeds=found.seeds,
        note=what or "Which mixer does GLUE need, from scratch?",
    )
