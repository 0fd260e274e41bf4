"""Peak memory of one training step, one measure for every device, whatever ran in the process before."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from matmix.experiments.step import accumulate
from matmix.experiments.task import Recipe, Task
from matmix.training import having

if TYPE_CHECKING:
    from accelerate import Accelerator


def step_memory(task: Task, accelerator: Accelerator, model: nn.Module, optimizer: Any, recipe: Recipe) -> int:
    """Bytes that a training step of this process has alive at its highest: weights and buffers, optimiser state,
    gradients, activations; all accumulated parts and auxiliary losses included, the batch itself and what the loop
    keeps beside (a running average, the best weights) not.

    One more forward and backward is measured by itself: on CUDA by the allocator, on CPU by the profiler.
    """
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    held += sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    )
    batch = next(task.batches("train", recipe.batch_size // accelerator.num_processes))
    batch = batch.map(lambda tensor: tensor.to(accelerator.device))
    losses = nn.ModuleList(having(model, "auxiliary_loss"))
    optimizer.zero_grad()
    most = peak(lambda: accumulate(accelerator, task, model, batch, recipe.accumulate, losses), accelerator.device.type)
    optimizer.zero_grad()
    return held + most


def peak(work: Callable[[], object], device: str = "cpu") -> int:
    """Bytes of tensors that the work has alive at its highest beside what was there before, its result included."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports each start and stop on stderr
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    now = most = 0
    for event in profile.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def process_memory() -> int | None:
    """The largest resident size of this process so far; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
