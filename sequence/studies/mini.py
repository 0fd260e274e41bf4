"""Three small tasks that tell kinds of mixers apart: `matmix study lra-mini`."""

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
    "delta_rule": "delta_rule(negative_eigenvalues=True)",
}
"""A window of 7 tokens a block; two fixed filters as long as the sequence; three whose matrix depends on the tokens."""
LISTS: dict[str, Any] = {
    "max_depth": 4, "max_args": 5, "min_length": 10, "max_length": 60, "length": 64, "train_examples": 20_000,
}  # fmt: skip


def lra_mini() -> Study:
    """Short lists, associative recall and parity: what a mixer cannot do shows within a few hundred steps.

    No score here is one of the Long Range Arena. A path task of 16 x 16 pixels is not among them: in about 25 seconds
    on one core nothing learned to follow a path. With `pathfinder` as it is, fixed filters, s4d and attention stayed at
    chance for 400 steps. Maximum pooling, batch norms and 2 x 2 pixels a token (tried beside the task) make something
    move: 800 to 1,000 steps of 64 pictures, one seed, scored 0.59 with attention, 0.58 without mixing, and 0.50 to 0.52
    with a window, s4d and hydra; without distractors 0.63 with attention or s4d, 0.57 without mixing, 0.52 with a
    window; on contours of 4 paddles 0.72 with a window, 0.65 with attention, 0.64 without mixing. The places of the two
    discs alone tell 0.80 at this size (see `Pathfinder`), so none of that need be about paths.
    """
    lists = {"steps": 500, "batch_size": 64, "lr": 2e-3, "eval_every": 100}
    specs = {name: spec for name, spec in ARMS.items() if name != spec}
    plain, read = (StudyArm("identity"), bag(pooled=False)), (StudyArm("identity"), bag())
    return Study(
        name="lra-mini",
        tasks=(
            StudyTask("listops", LISTS, lists, "", specs, read),
            StudyTask("recall", {}, {}, "mqar", specs, plain),
            StudyTask(
                "state_tracking", {"problem": "parity", "length": 24, "shortest": 1, "dim": 32},
                {"steps": 400, "batch_size": 128, "lr": 5e-3, "eval_every": 100}, "parity", specs, plain,
            ),
        ),
        mixers=tuple(ARMS),
        seeds=(0, 1, 2),
        note="What can a window, a fixed filter and a matrix that depends on the tokens do on three small tasks?",
    )  # fmt: skip
