"""Distillation of attention into Hydra on digits, against training Hydra from scratch.

    python -m benchmarks.distillation [--seeds 3] [--out FILE.md]

The teacher is an attention model of the task `digits` (4 x 4 patches of 2 x 2 pixels, width 64), trained for 600 steps.
Both arms train the same Hydra model with the same batches, and every run has a schedule that ends with its last step:
no step is spent on a rate that was meant for a longer run. Both have the same choice of learning rates and momenta.
What counts is the least number of steps at which the mean over the seeds is within a point of the teacher.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import heading, say, table
from matmix import surgery
from matmix.surgery import DistillRecipe, Stage
from sequence.tasks.digits import Digits

STUDENT = "hydra(expand=1)"
TASK = Digits(patch=2, dim=64)
TRIES = ((6e-3, (0.9, 0.95)), (6e-3, (0.8, 0.95)), (8e-3, (0.7, 0.9)))
STEPS = (24, 30, 48, 60)
HELD = [torch.cat([TASK.splits()[name][part] for name in ("val", "test")]) for part in (0, 1)]


def labelled(step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step, the same for both arms."""
    images, labels = TASK.splits()["train"]
    chosen = torch.randint(len(images), (32,), generator=torch.Generator().manual_seed(1000 + step))
    return images[chosen], labels[chosen]


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Per cent of the 720 images that are held out."""
    return 100 * (model.eval()(HELD[0]).argmax(1) == HELD[1]).float().mean().item()


def train(model: nn.Module, stage: Stage) -> nn.Module:
    """By the labels, as a stage of distillation does by the teacher."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.lr, betas=stage.betas, weight_decay=0.0)
    for step in range(stage.steps):
        optimizer.param_groups[0]["lr"] = stage.lr_at(step)
        x, y = labelled(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def distilled(teacher: nn.Module, stage: Stage, seed: int) -> nn.Module:
    """A copy of the teacher with Hydra in place of attention, taught by its predictions."""
    student = copy.deepcopy(teacher)
    surgery.replace(student, STUDENT, seed=seed)
    recipe = DistillRecipe(None, None, stage, temperature=4.0)
    surgery.distill(teacher, student, labelled, recipe, inputs=lambda batch: batch[0])
    return student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    teacher = train(TASK.model("attention(head_dim=16)", seed=0), Stage(600, lr=3e-3, lr_end=0.0))
    goal = accuracy(teacher) - 1
    say(f"teacher {goal + 1:.1f} %, within a point: {goal:.1f} %")
    rows, least = [], {}
    for steps in STEPS:
        row = [str(steps)]
        for arm in ("distilled", "from scratch"):
            means = {}
            for lr, betas in TRIES:
                stage = Stage(steps, lr=lr, lr_end=0.0, warmup=0.1, betas=betas, train="all")
                made = [
                    distilled(teacher, stage, seed) if arm == "distilled" else train(TASK.model(STUDENT, seed), stage)
                    for seed in range(given.seeds)
                ]
                means[lr, betas] = sum(map(accuracy, made)) / len(made)
            best = max(means, key=lambda key: means[key])
            if means[best] >= goal:
                least.setdefault(arm, steps)
            row.append(f"{means[best]:.1f} % (lr {best[0]:g}, betas {best[1][0]:g}, {best[1][1]:g})")
        rows.append(row)
        say(str(row))
    told = ", ".join(f"{arm} {least.get(arm, f'more than {STEPS[-1]}')}" for arm in ("distilled", "from scratch"))
    command = f"python -m benchmarks.distillation --seeds {given.seeds}"
    columns = ["steps", "distilled", "from scratch"]
    about = f"Teacher {goal + 1:.1f} %. Steps to within a point of it: {told}."
    text = "\n\n".join((heading(command), table(columns, rows), about))
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
