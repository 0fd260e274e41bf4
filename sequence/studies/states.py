"""State tracking: `matmix study states`."""

from __future__ import annotations

from matmix.experiments.study import Study, StudyArm, StudyTask

PROBLEMS = ("parity", "mod5", "Z60", "S3", "A5", "S5", "A4xZ5")
ARMS = (
    StudyArm("delta_rule", "delta_rule(d_conv=None)"),
    StudyArm("delta_rule [-1, 1]", "delta_rule(negative_eigenvalues=True, d_conv=None)"),
    StudyArm("delta_rule [-1, 1] x 2", "delta_rule(negative_eigenvalues=True, householders=2, d_conv=None)"),
    StudyArm("delta_rule [-1, 1] x 4", "delta_rule(negative_eigenvalues=True, householders=4, d_conv=None)"),
)
"""Eigenvalues from 0 to 1 or from -1 to 1, and how many reflections a token."""


def states() -> Study:
    """Which mixers keep track of a state, with one layer, at lengths that they were not trained at.

    Parity needs a negative eigenvalue (arXiv 2411.12537), S3 two reflections a token, S5 four (arXiv 2502.10297).
    """
    return Study(
        name="states",
        tasks=tuple(
            StudyTask("state_tracking", {"problem": problem}, label=problem, arms=ARMS) for problem in PROBLEMS
        ),
        mixers=("attention", "ssd", "s6", "identity"),
        seeds=(0, 1, 2),
        note="One layer, trained on 128 tokens, tested on up to 1,024: which mixers follow a state?",
    )
