"""The Long Range Arena: `matmix study lra --tasks listops image --regime s4 --seeds 5 --minutes 60`."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated, Any

import tyro

from matmix.experiments.study import Study, StudyTask
from matmix.spec import hint
from sequence.regimes import REGIMES, TASKS, Regime
from sequence.studies.controls import controls

MIXERS = ("attention", "hydra", "ssd", "s4d", "ponet", "fnet", "linear_attention")


def lra(
    regime: Annotated[str, tyro.conf.arg(help=f"Of {', '.join(REGIMES)}: sizes and recipe of every task.")] = "nystrom",
    data: Annotated[str, tyro.conf.arg(help="Folder with the files; without it, what can be drawn or fetched.")] = "",
) -> Study:
    """The six tasks in one published regime, each with its controls.

    A report is of one regime, so published numbers beside it are of the same one. The attention arm is the regime's:
    with rotary positions, unless the regime has its own. Where the regime is of a mixer of ours, that arm is as
    published.
    """
    if regime not in REGIMES:
        raise ValueError(f"regime is unknown{hint(regime, REGIMES)}")
    tasks = []
    for name in TASKS:
        try:
            tasks.append(_task(REGIMES[regime](name), data))
        except ValueError:  # the source did not train on it
            continue
    return Study(
        name=f"lra-{regime}",
        tasks=tuple(tasks),
        mixers=MIXERS,
        seeds=(0, 1, 2),
        note=f"The Long Range Arena in the regime {regime!r}. Scores of other regimes say nothing about these.",
    )


def _task(found: Regime, data: str) -> StudyTask:
    """One task in a regime."""
    sized = found.task == "pathx"
    options: dict[str, Any] = {"regime": found.name, **found.settings}
    if sized:
        options["img_size"] = 128
    if data:
        options["data"] = data
    own = re.match(r"\w+", found.mixer)
    assert own is not None
    depth, length = int(options["depth"]), int(options.get("length", 1024))
    return StudyTask(
        "pathfinder" if sized else found.task,
        options,
        dataclasses.asdict(found.recipe),
        label=found.task,
        specs={own[0]: found.mixer, "attention": found.attention},
        arms=controls(depth, length),
    )
