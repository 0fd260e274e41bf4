"""The one training loop: any task, any number of devices (`accelerate`), exact to resume.

The weights after step n are a function of the configuration alone (on CPU with one thread count): data order depends
on (seed, step), the learning rate on the step, and all random generators travel in the checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from matmix.experiments.checkpoint import load_latest, save_checkpoint, write_tensors
from matmix.experiments.config import RunConfig
from matmix.experiments.costs import costs
from matmix.experiments.generators import get_generators, seed_everything, set_generators
from matmix.experiments.log import Log
from matmix.experiments.memory import process_memory, step_memory
from matmix.experiments.optimizer import (
    describe_groups,
    match_layout,
    new_optimizer,
    running_average,
    set_step,
    unused_groups,
)
from matmix.experiments.progress import Progress
from matmix.experiments.scoring import Scorer
from matmix.experiments.step import StepLoss, accumulate, agree, alone, gather_objects, new_accelerator
from matmix.experiments.stopwatch import Stopwatch
from matmix.experiments.task import Batch, check_tests
from matmix.ops.signals import interruptible
from matmix.sampling import stream
from matmix.training import after_step, having


class Diverged(Exception):
    """The loss is not finite any more."""

    def __init__(self, step: int, value: float, where: str) -> None:
        super().__init__(f"the {where} loss is {value} at step {step}")
        self.step = step


def fit(config: RunConfig, folder: Path, progress: Progress | None = None, tensorboard: bool = False) -> dict[str, Any]:
    """Train to the last step, test the weights that were best on validation; returns the fields of a `Result`."""
    training = Training(config, folder, progress, tensorboard)
    try:
        with interruptible() as interrupted:
            training.train(interrupted)
        return training.result()
    finally:
        training.log.close()


class Training:
    """One run under way: `bare` is the task's model, `model` what accelerate makes of it, `kept` the weights that are
    evaluated and written (the running average where the recipe has one)."""

    def __init__(self, config: RunConfig, folder: Path, progress: Progress | None, tensorboard: bool) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.task, self.recipe = config.make_task(), config.make_recipe()
        self.accelerator = new_accelerator(self.recipe.precision, folder if tensorboard else None)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if self.recipe.batch_size % (self.world * self.recipe.accumulate):
            raise ValueError(
                f"batch_size={self.recipe.batch_size} must divide by {self.world} processes x "
                f"{self.recipe.accumulate} parts"
            )
        seed_everything(stream(config.seed, self.rank))
        self.bare = self.task.model(config.mixer, config.seed)
        self.model, self.optimizer = self.accelerator.prepare(self.bare, new_optimizer(self.bare, self.recipe))
        self.average = running_average(self.bare, self.recipe.ema) if self.recipe.ema else None
        self.kept: nn.Module = self.bare if self.average is None else self.average.module
        # Picked out once: to look through all modules of a model is felt in steps of a few milliseconds.
        self.parameters = list(self.bare.parameters())
        self.with_losses, self.with_state = (
            nn.ModuleList(having(self.bare, name)) for name in ("auxiliary_loss", "after_step")
        )
        self.scorer = Scorer(self.task, self.accelerator, self.recipe.eval_batch_size)
        self.tests = check_tests(self.task)
        self.notes = [f"no parameter is named by {text!r}" for text in unused_groups(self.bare, self.recipe)]

        self.step = self.saved = 0
        # Losses since the last line of the log: they stay on the device, since reading one would wait for its step.
        self.total, self.count = torch.zeros((), device=self.accelerator.device), 0
        self.parts: dict[str, Tensor] = {}
        self.best: dict[str, Any] = {"score": -math.inf, "step": 0, "weights": {}, "val": {}}
        self.watch = Stopwatch()
        self._resume()
        self.log = Log(folder / "metrics.jsonl", self.step, self.accelerator)

    # ------------------------------------------------------------------ checkpoints

    def _resume(self) -> None:
        """Go back to the newest whole checkpoint, if there is one."""
        found = load_latest(self.folder / "checkpoints")
        if found is None:
            return
        self.step, state = found
        self.saved = self.step
        self.bare.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        match_layout(self.optimizer)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if len(state["ranks"]) != self.world:
            raise ValueError(
                f"this run was begun by {len(state['ranks'])} processes; resume it with as many, not {self.world}"
            )
        mine = state["ranks"][self.rank]
        set_generators(mine["generators"])
        self.total, self.count = mine["total"].to(self.accelerator.device), mine["count"]
        self.parts = {name: part.to(self.accelerator.device) for name, part in mine.get("parts", {}).items()}
        self.best = state["best"]
        self.watch = Stopwatch(state["windows"], state["seconds"])

    def _save(self) -> None:
        mine: dict[str, Any] = {"generators": get_generators(), "total": self.total.cpu(), "count": self.count}
        if self.parts:
            mine["parts"] = {name: part.cpu() for name, part in self.parts.items()}
        ranks = gather_objects(mine, self.world)
        if self.saved == self.step or not self.accelerator.is_main_process:
            return
        self.log.flush()
        state = {
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "ranks": ranks,
            "best": self.best,
            "windows": self.watch.windows,
            "seconds": self.watch.seconds,
        }
        save_checkpoint(self.folder / "checkpoints", self.step, state)
        self.saved = self.step

    # ------------------------------------------------------------------ training

    def train(self, interrupted: Callable[[], bool]) -> None:
        """Step until the last one; KeyboardInterrupt, with a checkpoint, when `interrupted` says so."""
        recipe = self.recipe
        batches = self.task.batches(
            "train", recipe.batch_size, seed=self.config.seed, start=self.step, rank=self.rank, world=self.world
        )
        self.model.train()
        update = self._updates()
        self.watch.start()
        while self.step < recipe.steps:
            self._add(update(next(batches)))
            self.step, self.count = self.step + 1, self.count + 1
            self.watch.tick()
            last = self.step == recipe.steps
            stop = interrupted() and self.world == 1  # several processes agree only where they wait for each other
            if self.step % recipe.log_every == 0 or last:
                self._log_losses()
                stop = agree(self.accelerator, interrupted())
            if self.step % recipe.eval_every == 0 or last:
                self._evaluate()
                self.watch.leave_out(self.scorer.seconds)
            if self.step % recipe.checkpoint_every == 0 or last or stop:
                pause = time.perf_counter()
                self._save()
                self.watch.leave_out(time.perf_counter() - pause)
            if stop and not last:
                self.log.flush()
                raise KeyboardInterrupt(self.step)

    def _updates(self) -> Callable[[Batch], StepLoss]:
        """The function that makes one update of the weights from a batch and returns its loss."""
        recipe, stepper, clip = self.recipe, self.optimizer, self.accelerator.clip_grad_norm_
        if alone(self.accelerator):
            stepper, clip = self.optimizer.optimizer, nn.utils.clip_grad_norm_

        def update(batch: Batch) -> StepLoss:
            set_step(self.optimizer, recipe, self.step)
            loss = accumulate(self.accelerator, self.task, self.model, batch, recipe.accumulate, self.with_losses)
            if recipe.clip:
                clip(self.parameters, recipe.clip)
            stepper.step()
            stepper.zero_grad()
            after_step(self.with_state)
            if self.average is not None:
                self.average.update_parameters(self.bare)
            return loss

        return update

    def _add(self, loss: StepLoss) -> None:
        self.total += loss.total
        for name, value in loss.parts.items():
            self.parts[name] = self.parts[name] + value if name in self.parts else value

    def _log_losses(self) -> None:
        """A line with the mean loss since the last one, and its parts where it has some."""
        mean = self.accelerator.reduce(self.total, "mean").item() / self.count
        self.watch.window(self.recipe.log_every)
        line = {"step": self.step, "split": "train", "loss": mean, **self._mean_parts()}
        self.log.write({**line, "lr": self.recipe.lr_at(self.step - 1)})
        if not math.isfinite(mean):
            raise Diverged(self.step, mean, "training")
        if self.progress is not None and self.accelerator.is_main_process:
            self.progress(self._news(mean))
        self.total.zero_()
        self.parts, self.count = {}, 0

    def _mean_parts(self) -> dict[str, float]:
        """Over the steps and the processes; one that met no target has no parts."""
        found = gather_objects({name: part.item() for name, part in self.parts.items()}, self.world)
        names = dict.fromkeys(name for each in found for name in each)
        scale = self.count * self.world
        return {f"loss.{name}": sum(each.get(name, 0.0) for each in found) / scale for name in names}

    def _news(self, loss: float) -> dict[str, Any]:
        seconds = self.watch.typical
        return {
            "step": self.step,
            "steps": self.recipe.steps,
            "loss": loss,
            "samples_per_second": self.recipe.batch_size / seconds if seconds else None,
            "seconds_left": (self.recipe.steps - self.step) * seconds if seconds else None,
            **{f"val {name}": value for name, value in self.best["val"].items() if not name.startswith("loss")},
        }

    def _evaluate(self) -> None:
        """A line with the scores on validation; the best weights so far are kept."""
        val = self.scorer(self.model if self.average is None else self.kept, "val")
        self.log.write({"step": self.step, "split": "val", **val})
        if not math.isfinite(val["loss"]):
            raise Diverged(self.step, val["loss"], "validation")
        score = val[self.task.metric] if self.task.higher_is_better else -val[self.task.metric]
        if score > self.best["score"]:
            self.best = {"score": score, "step": self.step, "weights": self._weights(), "val": val}

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.kept.state_dict().items()}

    # ------------------------------------------------------------------ the end

    def result(self) -> dict[str, Any]:
        """Test the best weights, write them and the last ones, count costs: the fields of a `Result`."""
        trained, final = self.watch.seconds, self._weights()
        memory = step_memory(self.task, self.accelerator, self.model, self.optimizer, self.recipe)
        best = self.best["weights"] or final
        self.bare.load_state_dict(best)
        test = self.scorer(self.model, "test")
        self.log.write({"step": self.step, "split": "test", **test})
        tests = {name: self._further(name) for name in self.tests}
        self.log.flush()
        if self.accelerator.is_main_process:
            write_tensors(self.folder / "final.safetensors", final)
            write_tensors(self.folder / "best.safetensors", best)
        seconds = self.watch.typical
        return {
            "step": self.step,
            "val": self.best["val"],
            "test": test,
            "tests": tests,
            "notes": tuple(self.notes),
            "metric": self.task.metric,
            "higher_is_better": self.task.higher_is_better,
            "best_step": self.best["step"],
            "baselines": self.task.baselines(),
            "published": self.task.published(self.recipe),
            "solved_above": self.task.solved_above(),
            "facts": self.task.facts(),
            "groups": describe_groups(self.optimizer, self.recipe),
            **costs(self.task, self.bare),
            "step_seconds": seconds,
            "samples_per_second": self.recipe.batch_size / seconds if seconds else None,
            "seconds": trained,
            "peak_memory_bytes": memory,
            "max_rss_bytes": process_memory(),
        }

    def _further(self, split: str) -> dict[str, float]:
        """Scores on a further test split; {} and a note where the model does not take its inputs, such as a length that
        it was not built for: what was trained has its test all the same."""
        try:
            scores = self.scorer(self.model, split)
        except ValueError as error:
            self.notes.append(f"{split} has no score: {error}")
            return {}
        self.log.write({"step": self.step, "split": split, **scores})
        return scores
