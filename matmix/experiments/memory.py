"""Peak memory of one training step, measured the same way whatever ran in the process before."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from matmix.experiments.task import Recipe, Task, total_loss

if TYPE_CHECKING:
    from accelerate import Accelerator


def step_memory(task: Task, accelerator: Accelerator, model: nn.Module, optimizer: Any, recipe: Recipe) -> int:
    """Bytes of weights, optimiser state and the most that was alive at once in a step.

    On CUDA the allocator's peak over the run. On CPU the allocations of one more forward and backward, seen by the
    profiler: the resident size of the process counts imports, and the runs that it did before.
    """
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device)
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    held += sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    )
    batch = next(task.batches("train", recipe.batch_size // accelerator.num_processes)).parts(recipe.accumulate)[0]
    optimizer.zero_grad()
    most = peak(lambda: accelerator.backward(total_loss(task.loss(task.forward(model, batch), batch))))
    optimizer.zero_grad()
    return held + most


def peak(work: Callable[[], object]) -> int:
    """Bytes of CPU tensors that the work has alive at its highest, its result included."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports each start and stop on stderr
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    now = most = 0
    for event in profile.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
