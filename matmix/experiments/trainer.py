"""The one training loop: any task, any number of devices (`accelerate`), exact to resume.

The weights after step n are a function of the configuration alone (on CPU with one thread count): data order depends
on (seed, step), the learning rate on the step, and all random generators travel in the checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from matmix.experiments.checkpoint import load_latest, save_checkpoint, sync_folder, write_file, write_tensors
from matmix.experiments.environment import on_cpu
from matmix.experiments.memory import step_memory
from matmix.experiments.optimizer import match_layout, new_optimizer, running_average
from matmix.experiments.run import Progress, RunConfig
from matmix.experiments.task import Batch, Split, Task, stream
from matmix.training import after_step, auxiliary_losses, having


class Diverged(Exception):
    """The loss is not finite any more."""

    def __init__(self, step: int, value: float, where: str) -> None:
        super().__init__(f"the {where} loss is {value} at step {step}")
        self.step = step


def fit(config: RunConfig, folder: Path, progress: Progress | None) -> dict[str, Any]:
    """Train to the last step, test the weights that were best on validation; returns the fields of a `Result`."""
    task, recipe = config.make_task(), config.make_recipe()
    accelerator = new_accelerator(recipe.precision)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    if recipe.batch_size % (world * recipe.accumulate):
        raise ValueError(f"batch_size={recipe.batch_size} must divide by {world} processes x {recipe.accumulate} parts")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seed_everything(stream(config.seed, rank))
    bare = task.model(config.mixer, config.seed)
    model, optimizer = accelerator.prepare(bare, new_optimizer(bare, recipe))
    parameters, stepper, clip = list(bare.parameters()), optimizer, accelerator.clip_grad_norm_
    if alone(accelerator):
        stepper, clip = optimizer.optimizer, nn.utils.clip_grad_norm_
    average = running_average(bare, recipe.ema) if recipe.ema else None
    # Picked out once: to look through all modules of a model is felt in steps of a few milliseconds.
    with_losses, with_state = (nn.ModuleList(having(bare, name)) for name in ("auxiliary_loss", "after_step"))
    kept = bare if average is None else average.module  # the weights that are evaluated and written
    scorer = Scorer(task, accelerator, recipe.eval_batch_size)

    total, count = torch.zeros((), device=device), 0  # of the losses since the last line of the log
    best: dict[str, Any] = {"score": -math.inf, "step": 0, "weights": {}, "val": {}}
    windows: list[float] = []
    step, before = 0, 0.0
    resumed = load_latest(folder / "checkpoints")
    if resumed is not None:
        step, state = resumed
        bare.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        match_layout(optimizer)
        if average is not None:
            average.load_state_dict(state["average"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        if len(state["ranks"]) != world:
            raise ValueError(
                f"this run was begun by {len(state['ranks'])} processes; resume it with as many, not {world}"
            )
        mine = state["ranks"][rank]
        set_generators(mine["generators"])
        total, count = mine["total"].to(device), mine["count"]
        best, windows, before = state["best"], state["windows"], state["seconds"]
    log = Log(folder / "metrics.jsonl", step, write=accelerator.is_main_process)
    began, saved = time.perf_counter(), step

    def save() -> None:
        nonlocal saved
        ranks = gather_objects({"generators": get_generators(), "total": total.cpu(), "count": count}, world)
        if saved == step or not accelerator.is_main_process:
            return
        log.flush()
        state = {
            "model": bare.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": None if average is None else average.state_dict(),
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
            "ranks": ranks,
            "best": best,
            "windows": windows,
            "seconds": before + time.perf_counter() - began,
        }
        save_checkpoint(folder / "checkpoints", step, state)
        saved = step

    batches = task.batches("train", recipe.batch_size, seed=config.seed, start=step, rank=rank, world=world)
    clock, timed = time.perf_counter(), 0
    model.train()
    with interruptible() as interrupted:
        while step < recipe.steps:
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr_at(step)
            loss = accumulate(accelerator, task, model, next(batches), recipe.accumulate, with_losses)
            if recipe.clip:
                clip(parameters, recipe.clip)
            stepper.step()
            stepper.zero_grad()
            after_step(with_state)
            if average is not None:
                average.update_parameters(bare)
            total += loss  # stays on the device: reading it would wait for the step
            step, count, timed = step + 1, count + 1, timed + 1

            last = step == recipe.steps
            if step % recipe.log_every == 0 or last:
                mean = accelerator.reduce(total, "mean").item() / count
                now = time.perf_counter()
                if timed == recipe.log_every:
                    windows.append((now - clock) / timed)
                clock, timed = now, 0  # what logging takes belongs to the next window
                log.write({"step": step, "split": "train", "loss": mean, "lr": recipe.lr_at(step - 1)})
                if not math.isfinite(mean):
                    raise Diverged(step, mean, "training")
                if progress is not None and accelerator.is_main_process:
                    seconds = typical(windows)
                    progress(
                        {
                            "step": step,
                            "steps": recipe.steps,
                            "loss": mean,
                            "samples_per_second": recipe.batch_size / seconds if seconds else None,
                            "seconds_left": (recipe.steps - step) * seconds if seconds else None,
                            **{f"val {name}": value for name, value in best["val"].items() if name != "loss"},
                        }
                    )
                stop = agree(accelerator, interrupted())
                total.zero_()
                count = 0
            else:
                stop = interrupted() and world == 1
            if step % recipe.eval_every == 0 or last:
                val = scorer(model if average is None else kept, "val")
                log.write({"step": step, "split": "val", **val})
                if not math.isfinite(val["loss"]):
                    raise Diverged(step, val["loss"], "validation")
                score = val[task.metric] if task.higher_is_better else -val[task.metric]
                if score > best["score"]:
                    weights = {name: value.detach().cpu().clone() for name, value in kept.state_dict().items()}
                    best = {"score": score, "step": step, "weights": weights, "val": val}
                clock += scorer.seconds
            if step % recipe.checkpoint_every == 0 or last or stop:
                pause = time.perf_counter()
                save()
                clock += time.perf_counter() - pause
            if stop and not last:
                log.flush()
                raise KeyboardInterrupt(step)

    trained = before + time.perf_counter() - began
    final = {name: value.detach().cpu().clone() for name, value in kept.state_dict().items()}
    memory = step_memory(task, accelerator, model, optimizer, recipe)
    bare.load_state_dict(best["weights"] or final)
    test = scorer(model, "test")
    log.write({"step": step, "split": "test", **test})
    log.flush()
    if accelerator.is_main_process:
        write_tensors(folder / "final.safetensors", final)
        write_tensors(folder / "best.safetensors", best["weights"] or final)
    seconds = typical(windows)
    return {
        "step": step,
        "val": best["val"],
        "test": test,
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "best_step": best["step"],
        "baselines": task.baselines(),
        "facts": task.facts(),
        **costs(task, bare),
        "step_seconds": seconds,
        "samples_per_second": recipe.batch_size / seconds if seconds else None,
        "seconds": trained,
        "peak_memory_bytes": memory,
        "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def accumulate(
    accelerator: Accelerator, task: Task, model: nn.Module, batch: Batch, parts: int, with_losses: nn.ModuleList
) -> Tensor:
    """Add the gradient of one batch, in `parts` equal parts; returns the loss, detached, on the device.

    It is one mean over all that `task.weight` counts in all parts of all processes, plus the mean of the auxiliary
    losses of `with_losses` (see `matmix.training`). With several processes, the loss is the mean of what they return.
    """
    split = [batch] if parts == 1 else [batch.map(lambda tensor, i=i: tensor.chunk(parts)[i]) for i in range(parts)]
    weights = [float(task.weight(part)) for part in split]
    whole: Any = sum(weights)
    if accelerator.num_processes > 1:  # gradients are averaged over processes: the mean weight is what counts
        whole = accelerator.reduce(torch.tensor(whole, device=accelerator.device), "mean")
        whole = whole.clamp(min=torch.finfo(whole.dtype).tiny)  # 0 where no process has a target
    total: Tensor | None = None
    with auxiliary_losses(with_losses) as auxiliary:
        for index, (part, weight) in enumerate(zip(split, weights, strict=True)):
            part = part.map(lambda tensor: tensor.to(accelerator.device, non_blocking=True))
            # Gradients travel between devices once a step, with the last part.
            with accelerator.no_sync(model) if index < parts - 1 else nullcontext():
                output = task.forward(model, part)
                loss = task.loss(output, part) if weight else nothing(output)
                if weight and (parts > 1 or accelerator.num_processes > 1):
                    loss = loss * (weight / whole)
                if len(with_losses):
                    loss = loss + auxiliary() / parts
                loss.backward() if alone(accelerator) else accelerator.backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return total


def nothing(output: Any) -> Tensor:
    """0, the mean over no targets: every output gets the gradient 0, whatever it is."""
    return sum(leaf.flatten()[:0].sum() for leaf in tree_leaves(output) if torch.is_tensor(leaf))  # type: ignore[return-value]


class Scorer:
    """Loss and metrics of a split, over all its batches and all ranks."""

    def __init__(self, task: Task, accelerator: Accelerator, batch_size: int) -> None:
        from torchmetrics import MeanMetric

        self.task, self.accelerator, self.batch_size = task, accelerator, batch_size
        self.metrics = {name: metric.to(accelerator.device) for name, metric in task.metrics().items()}
        self.mean = MeanMetric().to(accelerator.device)
        if task.metric not in self.metrics:
            raise ValueError(f"{type(task).__name__}.metric is {task.metric!r}; metrics() has {list(self.metrics)}")
        self.seconds = 0.0

    @torch.no_grad()
    def __call__(self, model: nn.Module, split: Split) -> dict[str, float]:
        began, task, accelerator = time.perf_counter(), self.task, self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        training = model.training
        model.eval()
        for batch in task.batches(split, self.batch_size, rank=rank, world=world):
            weight = float(task.weight(batch))
            batch = batch.map(lambda tensor: tensor.to(accelerator.device, non_blocking=True))
            output = task.forward(model, batch)
            if weight:  # a mean over no targets is not a number
                self.mean.update(task.loss(output, batch), weight=weight)
            prediction, target = task.prediction(output, batch)
            for metric in self.metrics.values():
                metric.update(prediction, target)
        found = {"loss": self.mean, **self.metrics}
        values = {name: float(metric.compute()) for name, metric in found.items()}
        for metric in found.values():
            metric.reset()
        model.train(training)
        self.seconds = time.perf_counter() - began
        return values


class Log:
    """`metrics.jsonl`: one JSON object a line. Lines after `step` belong to a future that a resumed run redoes."""

    def __init__(self, path: Path, step: int, *, write: bool) -> None:
        self.file = None
        if not write:
            return
        kept = b""
        if path.exists():
            lines = (line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
            past = (line for line in lines if json.loads(line)["step"] <= step and b'"test"' not in line)
            kept = b"".join(past) if step else b""
        write_file(path, kept)
        self.file = open(path, "ab")  # noqa: SIM115  (closed with the object)

    def write(self, line: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.write(json.dumps(line).encode() + b"\n")
            self.file.flush()

    def flush(self) -> None:
        if self.file is not None:
            os.fsync(self.file.fileno())
            sync_folder(Path(self.file.name).parent)


def new_accelerator(precision: str) -> Accelerator:
    # The state is a process-wide singleton that refuses a second precision; runs in one process are independent.
    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(mixed_precision=precision, cpu=on_cpu())


def alone(accelerator: Accelerator) -> bool:
    """One process in full range: accelerate's wrappers have nothing to do then, but each call of theirs looks for
    packages on the disk, which is felt in steps of a few milliseconds."""
    return accelerator.distributed_type == DistributedType.NO and accelerator.scaler is None


def costs(task: Task, model: nn.Module) -> dict[str, int]:
    """Parameters, multiply-accumulates and FFT operations for one example."""
    from matmix.cost import count

    device = next(model.parameters()).device
    report = count(model, *(part.to(device) for part in task.example()))
    return {"parameters": report.parameters, "macs": report.macs, "fft_flops": report.fft_flops}


def typical(windows: list[float]) -> float | None:
    """Median seconds of a step; the first window pays for warming up."""
    return statistics.median(windows[1:] or windows) if windows else None


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def get_generators() -> dict[str, Any]:
    """The state of all global random generators, as tensors and JSON values."""
    numpy: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, gauss = numpy
    version, internal, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(internal), following],
    }


def set_generators(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, following = state["python"]
    random.setstate((version, tuple(internal.tolist()), following))


def gather_objects(value: Any, world: int) -> list[Any]:
    if world == 1:
        return [value]
    found: list[Any] = [None] * world
    torch.distributed.all_gather_object(found, value)
    return found


def agree(accelerator: Accelerator, stop: bool) -> bool:
    """True on every rank when any rank was asked to stop."""
    if accelerator.num_processes == 1:
        return stop
    return bool(accelerator.reduce(torch.tensor(float(stop), device=accelerator.device), "sum").item())


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that is true once SIGINT or SIGTERM came; a second one interrupts at once."""
    asked = False

    def handler(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
