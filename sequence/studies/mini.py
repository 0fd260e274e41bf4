"""The Long Range Arena in a quarter of an hour: `matmix study lra-mini`."""

from __future__ import annotations

from typing import Any

from matmix.experiments.study import Study, StudyArm, StudyTask
from sequence.studies.controls import bag

ARMS = {
    "local": "sep_conv",
    "toeplitz": "toeplitz",
    "s4d": "s4d(causal=False)",
    "attention": "attention(rotary=True)",
    "hydra": "hydra(expand=1)",
    "delta_rule": "delta_rule(negative_eigenvalues=True, d_conv=None)",
}
"""A window of 7 tokens a block; two fixed filters as long as the sequence; three whose matrix depends on the tokens."""
LISTS: dict[str, Any] = {
    "max_depth": 4, "max_args": 5, "min_length": 10, "max_length": 60, "length": 64, "train_examples": 20_000,
    "dim": 64,
}  # fmt: skip
TASKS = (
    ("listops", LISTS, {"steps": 300, "batch_size": 64, "lr": 2e-3}),
    ("pathfinder", {"img_size": 16, "examples": 20_000, "dim": 32, "depth": 3}, {"steps": 500, "lr": 3e-3}),
    ("recall", {}, {}),
    ("state_tracking", {"problem": "parity", "length": 24, "shortest": 1, "dim": 32}, {"steps": 400, "lr": 5e-3}),
)
LABELS = {"pathfinder": "path-16", "recall": "mqar", "state_tracking": "parity"}


def arms(task: str) -> tuple[StudyArm, ...]:
    return StudyArm("identity"), bag(pooled=task in ("listops", "pathfinder"))


def lra_mini() -> Study:
    """Short lists, paths in 16 x 16 pixels, associative recall and parity: what a mixer cannot do shows in minutes.

    No score here is one of the Long Range Arena.
    """
    specs = {name: spec for name, spec in ARMS.items() if name != spec}
    return Study(
        name="lra-mini",
        tasks=tuple(
            StudyTask(task, options, recipe, LABELS.get(task, task), specs, arms(task))
            for task, options, recipe in TASKS
        ),
        mixers=tuple(ARMS),
        seeds=(0, 1, 2),
        note="What can a window, a fixed filter and a matrix that depends on the tokens do on four small tasks?",
    )
