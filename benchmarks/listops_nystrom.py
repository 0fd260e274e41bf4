"""ListOps in the regime of Nystromformer's code, as far as two cores come: 500 of its 5,000 steps, at published size.

    matmix study benchmarks/listops_nystrom.py [--minutes 60]

2,048 tokens, 32 lists a step. The schedule is that of 5,000 steps, so after 500 the rate is half-way up its warm-up:
the scores say that everything runs as published and what a step costs, not what the regime reaches. Stopped, killed or
out of `--minutes`, the same command goes on where it was.
"""

from __future__ import annotations

import dataclasses

from sequence.studies.controls import bag
from sequence.studies.lra import lra

STEPS = 500
MIXERS = ("attention", "hydra", "ponet", "fnet")

_whole = lra("nystrom")
_listops = next(task for task in _whole.tasks if task.task == "listops")
study = dataclasses.replace(
    _whole,
    name="listops-nystrom-500",
    tasks=(
        dataclasses.replace(
            _listops,
            recipe={
                **_listops.recipe,
                "steps": STEPS,
                "schedule_steps": _listops.recipe["steps"],
                "eval_every": STEPS // 2,
            },
            arms=(bag(),),  # the other controls of the study cost as much as the arms
        ),
    ),
    mixers=MIXERS,
    seeds=(0,),
    note=f"ListOps in the regime 'nystrom', the first {STEPS} of its {_listops.recipe['steps']:,} steps.",
)
