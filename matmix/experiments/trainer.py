"""The one training loop: any task, any number of devices (`accelerate`), exact to resume.

The weights after step n are a function of the configuration alone (on CPU with one thread count): data order depends
on (seed, step), the learning rate on the step, and all random generators travel in the checkpoint.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from matmix.compiled import Compiled, Shapes, compile_forward, compiling
from matmix.experiments.ablations import ablated
from matmix.experiments.best import Best
from matmix.experiments.blocks import write_examples
from matmix.experiments.checkpoint import load_latest, save_checkpoint, write_tensors
from matmix.experiments.config import RunError, key_of
from matmix.experiments.costs import costs
from matmix.experiments.folder import check_held
from matmix.experiments.generators import get_generators, seed_everything, set_generators
from matmix.experiments.log import Log, check_log
from matmix.experiments.losses import RunningLoss
from matmix.experiments.memory import process_memory, step_memory
from matmix.experiments.operation import Surgery
from matmix.experiments.optimizer import (
    describe_groups,
    match_layout,
    new_optimizer,
    running_average,
    set_step,
    unused_groups,
)
from matmix.experiments.progress import Progress
from matmix.experiments.recompute import recompute_blocks
from matmix.experiments.scoring import Scorer
from matmix.experiments.step import StepLoss, accumulate, agree, alone, gather_objects, new_accelerator, share_buffers
from matmix.experiments.stopwatch import Stopwatch
from matmix.experiments.task import Batch, Recipe, Task, check_tests
from matmix.folders import token
from matmix.ops.signals import interruptible
from matmix.ops.sizes import LengthError
from matmix.sampling import stream
from matmix.surgery.dead import dead_parameters
from matmix.training import after_step, having


class Diverged(Exception):
    """The loss is not finite any more."""

    def __init__(self, step: int, value: float, where: str) -> None:
        super().__init__(f"the {where} loss is {value} at step {step}")
        self.step = step


class Configured(Protocol):
    """What is trained: a `RunConfig`, or a task that is an object of this process."""

    @property
    def mixer(self) -> str: ...

    @property
    def seed(self) -> int: ...

    def make_task(self) -> Task: ...

    def make_recipe(self) -> Recipe: ...

    def make_model(self, task: Task, *, begun: bool = False, notes: list[str] | None = None) -> nn.Module: ...

    def make_surgery(self) -> Surgery: ...

    def to_json(self) -> dict[str, Any]: ...


_TRAINS = threading.Lock()


@contextmanager
def only_thread() -> Iterator[None]:
    """Held while this process trains: torch's generators and number of threads are those of the process, so two threads
    that train at once would change each other's weights.

    Raises:
        RunError: where another thread trains.
    """
    if not _TRAINS.acquire(blocking=False):
        raise RunError("another thread of this process trains, and both would draw from torch's random generators: "
                       "give each run a process of its own")  # fmt: skip
    try:
        yield
    finally:
        _TRAINS.release()


def fit(config: Configured, folder: Path, progress: Progress | None = None, track: str = "") -> dict[str, Any]:
    """Train to the last step, test the weights that were best on validation; returns the fields of a `Result`."""
    training = Training(config, folder, progress, track)
    try:
        with compiling(training.bare) if training.recipe.compile else nullcontext():
            with interruptible() as interrupted:
                training.train(interrupted)
            return training.result()
    finally:
        training.log.close()


class Training:
    """One run under way: `bare` is the task's model, `model` what accelerate makes of it, `kept` the weights that are
    evaluated and written (the running average where the recipe has one)."""

    def __init__(self, config: Configured, folder: Path, progress: Progress | None, track: str) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.task, self.recipe = config.make_task(), config.make_recipe()
        self.accelerator = new_accelerator(self.recipe.precision, track, folder)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        if self.recipe.batch_size % (self.world * self.recipe.accumulate):
            raise ValueError(
                f"batch_size={self.recipe.batch_size} must divide by {self.world} processes x "
                f"{self.recipe.accumulate} parts"
            )
        seed_everything(stream(config.seed, self.rank))
        self.key, self.token = key_of(config.to_json()), token(folder)

        def check(state: Any) -> None:
            if "log" in state:  # older versions did not note it
                check_log(folder / "metrics.jsonl", state["log"])

        found = load_latest(folder / "checkpoints", self.key, check)
        self.notes: list[str] = []
        self.bare = config.make_model(self.task, begun=found is not None, notes=self.notes)
        if self.recipe.checkpointing:
            recompute_blocks(self.bare)
        self.model, self.optimizer = self.accelerator.prepare(self.bare, new_optimizer(self.bare, self.recipe))
        self.shapes: Shapes = {}
        if self.recipe.compile:
            torch.compiler.reset()  # programs of the runs before in this process count among those that it may keep
            self.model = compile_forward(self.model, self.bare, self.shapes)
        self.average = running_average(self.bare, self.recipe.ema) if self.recipe.ema else None
        self.kept: nn.Module = self.bare if self.average is None else self.average.module
        # Picked out once: to look through all modules of a model is felt in steps of a few milliseconds.
        self.parameters = list(self.bare.parameters())
        self.with_losses, self.with_state = (
            nn.ModuleList(having(self.bare, name)) for name in ("auxiliary_loss", "after_step")
        )
        self.scorer = Scorer(self.task, self.accelerator, self.recipe.eval_batch_size)
        self.tests = check_tests(self.task)
        self.notes += [f"no parameter is named by {text!r}" for text in unused_groups(self.bare, self.recipe)]

        self.step = self.saved = 0
        self.losses, self.best = RunningLoss(self.accelerator), Best()
        self.worlds = [(0, self.world)]  # from which step on there were how many processes
        self.watch = Stopwatch()
        if found is not None:
            self._resume(*found)
        length = found[1].get("log", {}).get("size") if found is not None else 0
        self.log = Log(folder / "metrics.jsonl", self.step, self.accelerator, config.to_json(), length)

    # ------------------------------------------------------------------ checkpoints

    def _resume(self, step: int, state: Any) -> None:
        """Go back to a checkpoint."""
        self.step = self.saved = step
        self.bare.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        match_layout(self.optimizer)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        ranks, self.worlds = state["ranks"], state["worlds"]
        if len(ranks) != self.world:
            self.worlds.append((self.step, self.world))
        if self.rank < len(ranks):
            set_generators(ranks[self.rank]["generators"])
            self.shapes.update(ranks[self.rank].get("shapes", {}))
        else:
            seed_everything(stream(stream(self.config.seed, self.rank), self.step))
        self.losses.load([rank["losses"] for rank in ranks])
        self.best.load(state["best"])
        self.watch = Stopwatch(state["windows"], state["seconds"])

    def _save(self) -> None:
        mine = {"generators": get_generators(), "losses": self.losses.state(), "shapes": self.shapes}
        ranks = gather_objects(mine, self.world)
        if self.saved == self.step or not self.accelerator.is_main_process:
            return
        check_held(self.folder, self.token)
        self.log.flush()
        state = {
            "log": self.log.state(),
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "ranks": ranks,
            "worlds": self.worlds,
            "best": self.best.state(),
            "windows": self.watch.windows,
            "seconds": self.watch.seconds,
        }
        save_checkpoint(self.folder / "checkpoints", self.step, state, run=self.key)
        self.saved = self.step

    # ------------------------------------------------------------------ training

    def train(self, interrupted: Callable[[], bool]) -> None:
        """Step until the last one, or until nothing gets better any more; KeyboardInterrupt, with a checkpoint, when
        `interrupted` says so."""
        recipe = self.recipe
        batches = self.task.batches(
            "train", recipe.batch_size, seed=self.config.seed, start=self.step, rank=self.rank, world=self.world
        )
        self.model.train()
        update = self._updates()
        self.watch.start()
        while self.step < recipe.steps and not self._ended():
            self.losses.add(update(next(batches)))
            self.step += 1
            self.watch.tick()
            last = self.step == recipe.steps
            stop = interrupted() and self.world == 1  # several processes agree only where they wait for each other
            if self.step % recipe.log_every == 0 or last:
                self._log_losses()
                stop = agree(self.accelerator, interrupted())
            if self.step % recipe.eval_every == 0 or last:
                self._evaluate()
                self.watch.leave_out(self.scorer.seconds)
                if self._ended() and not last:
                    last = True
                    if self.losses.count:
                        self._log_losses()
            if self.step % recipe.checkpoint_every == 0 or last or stop:
                pause = time.perf_counter()
                self._save()
                self.watch.leave_out(time.perf_counter() - pause)
            if stop and not last:
                self.log.flush()
                raise KeyboardInterrupt(self.step)

    def _ended(self) -> str:
        """Why there are no more steps before the last one: nothing got better for long enough, or it is good enough."""
        recipe, best = self.recipe, self.best
        if recipe.patience and best.stale >= recipe.patience:
            return f"{recipe.patience} evaluations in a row were no better than that of step {best.step}"
        if recipe.stop_at and best.val:
            metric, sign = self._picks(best.val)
            if best.score >= sign * recipe.stop_at:
                return f"{metric} {best.val[metric]:.4g} on validation reached {recipe.stop_at:g}"
        return ""

    def _picks(self, val: dict[str, float]) -> tuple[str, int]:
        """The score that picks the weights, and 1 where higher is better, else -1. Without labels it is the loss."""
        metric = self.task.metric if self.task.metric in val else "loss"
        return metric, 1 if metric != "loss" and self.task.higher_is_better else -1

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

    def _log_losses(self) -> None:
        """A line with the mean loss since the last one, and its parts where it has some."""
        means = self.losses.mean()
        self.watch.window(self.recipe.log_every)
        self.log.write({"step": self.step, "split": "train", **means, "lr": self.recipe.lr_at(self.step - 1)})
        if not math.isfinite(means["loss"]):
            raise Diverged(self.step, means["loss"], "training")
        if self.progress is not None and self.accelerator.is_main_process:
            self.progress(self._news(means["loss"]))
        self.losses.clear()

    def _news(self, loss: float) -> dict[str, Any]:
        seconds = self.watch.typical
        return {
            "step": self.step,
            "steps": self.recipe.steps,
            "loss": loss,
            "samples_per_second": self.recipe.batch_size / seconds if seconds else None,
            "seconds_left": (self.recipe.steps - self.step) * seconds if seconds else None,
            **{f"val {name}": value for name, value in self.best.val.items() if not name.startswith("loss")},
        }

    def _evaluate(self) -> None:
        """A line with the scores on validation; the best weights so far are kept."""
        share_buffers(self.accelerator, self.kept)
        val = self.scorer(self._called(self.kept), "val", stream(self.config.seed, self.step))
        self.log.write({"step": self.step, "split": "val", **val})
        if not math.isfinite(val["loss"]) and self.recipe.kept == "better":
            raise Diverged(self.step, val["loss"], "validation")
        metric, sign = self._picks(val)
        self.best.take(sign * val[metric], self.step, val, self._weights, self.recipe.kept)

    def _called(self, model: nn.Module) -> nn.Module:
        """What an evaluation of a model calls."""
        return Compiled(model, self.shapes) if self.recipe.compile else model

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.kept.state_dict().items()}

    # ------------------------------------------------------------------ the end

    def result(self) -> dict[str, Any]:
        """Test the best weights, write them and the last ones, count costs: the fields of a `Result`."""
        trained, final = self.watch.seconds, self._weights()
        memory = step_memory(self.task, self.accelerator, self.model, self.optimizer, self.recipe)
        best = self.best.weights or final
        self.bare.load_state_dict(best)
        seed = stream(self.config.seed, self.step)
        test, each = self.scorer.with_examples(self._called(self.bare), "test", seed)
        self.log.write({"step": self.step, "split": "test", **test})
        tests = {name: self._further(name) for name in self.tests}
        ablations = self._ablations()
        self.log.flush()
        if self.accelerator.is_main_process:
            check_held(self.folder, self.token)
            write_tensors(self.folder / "final.safetensors", final, self.key)
            write_tensors(self.folder / "best.safetensors", best, self.key)
            if each is not None:
                write_examples(self.folder, each[0], self.task.example_span(), each[1])
        seconds = self.watch.typical
        return {
            "step": self.step,
            "val": self.best.val,
            "test": test,
            "tests": tests,
            "ablations": ablations,
            "notes": tuple(self._notes()),
            "metric": self.task.metric,
            "higher_is_better": self.task.higher_is_better,
            "best_step": self.best.step,
            "baselines": self.task.baselines(),
            "published": self.task.published(self.recipe),
            "solved_above": self.task.solved_above(),
            "facts": self.task.facts(),
            "groups": describe_groups(self.optimizer, self.recipe),
            **costs(self.task, self.bare),
            "dead_parameters": dead_parameters(self.bare, self._outputs),
            "step_seconds": seconds,
            "samples_per_second": self.recipe.batch_size / seconds if seconds else None,
            "seconds": trained,
            "peak_memory_bytes": memory,
            "max_rss_bytes": process_memory(),
        }

    def _notes(self) -> list[str]:
        notes, recipe = list(self.notes), self.recipe
        if recipe.compile:
            notes.append("its forward was compiled by torch.compile: equal to an eager run up to rounding")
        if self.step < recipe.steps:
            notes.append(f"stopped after {self.step} of {recipe.steps} steps: {self._ended()}")
        if len(self.worlds) > 1:
            parts = ", ".join(f"{world} from step {step} on" for step, world in self.worlds)
            notes.append(f"processes were {parts}: equal to a run with one number of them up to rounding")
        elif self.world > 1:
            notes.append(f"{self.world} processes: the command gives the same with as many, with others up to rounding")
        return notes

    def _further(self, split: str) -> dict[str, float]:
        """Scores on a further test split; {} and a note where the model was not built for its length: what was trained
        has its test all the same."""
        try:
            scores = self.scorer(self._called(self.bare), split, stream(self.config.seed, self.step))
        except LengthError as error:
            self.notes.append(f"{split} has no score: {error}")
            return {}
        self.log.write({"step": self.step, "split": split, **scores})
        return scores

    def _ablations(self) -> dict[str, dict[str, float]]:
        """Test scores with other matrices in the trained model, as the surgery of the run says."""
        surgery, scores = self.config.make_surgery(), {}
        for name in surgery.ablate:
            try:
                found = ablated(name, self.task, self.bare, self.scorer, surgery, self.recipe, self.config.seed)
            except (ValueError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
                self.notes.append(f"not ablated by {name!r}: {str(error).partition(chr(10))[0]}")
            else:
                scores[name] = found
                self.log.write({"step": self.step, "split": f"test, {name}", **found})
        return scores

    def _outputs(self, model: nn.Module) -> Any:
        """What a model gives for some examples of validation."""
        batch = next(iter(self.task.batches("val", min(8, self.recipe.eval_batch_size))))
        return self.task.forward(model, batch.map(lambda tensor: tensor.to(self.accelerator.device)))
