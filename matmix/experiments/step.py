"""One training step, alone or over processes: forward, loss and backward of a batch, in parts."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from matmix.experiments.environment import on_cpu
from matmix.experiments.task import Batch, Task
from matmix.training import auxiliary_losses


def new_accelerator(precision: str) -> Accelerator:
    # The state is a process-wide singleton that refuses a second precision; runs in one process are independent.
    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(mixed_precision=precision, cpu=on_cpu())


def alone(accelerator: Accelerator) -> bool:
    """One process in full range: accelerate's wrappers have nothing to do then, but each call of theirs looks for
    packages on the disk, which is felt in steps of a few milliseconds."""
    return accelerator.distributed_type == DistributedType.NO and accelerator.scaler is None


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
