"""One training step, alone or over processes: forward, loss and backward of a batch, in parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import DistributedType, LoggerType
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from matmix.experiments.environment import on_cpu
from matmix.experiments.extras import require
from matmix.experiments.task import Batch, Task, named_losses, total_loss
from matmix.spec import hint
from matmix.training import auxiliary_losses

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
"""What accelerate may be configured for that the files of a run do not hold."""


def new_accelerator(precision: str, track: str = "", folder: Path | None = None) -> Accelerator:
    """An accelerator for one run; `track` names one of accelerate's trackers, whose files go to the folder."""
    # The state is a process-wide singleton that refuses a second precision; runs in one process are independent.
    AcceleratorState._reset_state(reset_partial_state=False)
    tracking: dict[str, Any] = {}
    if track:
        check_tracker(track)
        tracking = {"log_with": track, "project_dir": folder}
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu(), **tracking)
    if accelerator.distributed_type in _SHARDED:
        raise ValueError(
            "a run is trained by one process, or by copies of the model (DDP), got "
            f"{accelerator.distributed_type.value}: checkpoints and weights of sharded parameters would be those of "
            "one process alone"
        )
    return accelerator


def check_tracker(name: str) -> None:
    """Raise a ValueError where accelerate has no tracker of that name, or its package is not installed."""
    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"track={name!r} is no tracker of accelerate{hint(name, LOGGER_TYPE_TO_CLASS)}")
    if name in LoggerType.list() and name not in map(str, get_available_trackers()):
        require(name)


def alone(accelerator: Accelerator) -> bool:
    """One process in full range: accelerate's wrappers have nothing to do then, but each call of theirs looks for
    packages on the disk, which is felt in steps of a few milliseconds."""
    return accelerator.distributed_type == DistributedType.NO and accelerator.scaler is None


class StepLoss(NamedTuple):
    """The loss of a step, detached, on the device, and its parts by name where the task names some."""

    total: Tensor
    parts: dict[str, Tensor]


def accumulate(
    accelerator: Accelerator, task: Task, model: nn.Module, batch: Batch, parts: int, with_losses: nn.ModuleList
) -> StepLoss:
    """Add the gradient of one batch, in `parts` equal parts, and return the loss.

    It is one mean over all that `task.weight` counts in all parts of all processes, plus the mean of the auxiliary
    losses of `with_losses` (see `matmix.training`). With several processes, the loss is the mean of what they return.
    """
    split = batch.parts(parts)
    weights = [float(task.weight(part)) for part in split]
    whole: Any = sum(weights)
    if accelerator.num_processes > 1:  # gradients are averaged over processes: the mean weight is what counts
        whole = accelerator.reduce(torch.tensor(whole, device=accelerator.device), "mean")
        whole = whole.clamp(min=torch.finfo(whole.dtype).tiny)  # 0 where no process has a target
    divided = parts > 1 or accelerator.num_processes > 1
    total: Tensor | None = None
    named: dict[str, Tensor] = {}
    with auxiliary_losses(with_losses) as auxiliary:
        for index, (part, weight) in enumerate(zip(split, weights, strict=True)):
            part = part.map(lambda tensor: tensor.to(accelerator.device, non_blocking=True))
            # Gradients travel between devices once a step, with the last part.
            with accelerator.no_sync(model) if index < parts - 1 else nullcontext():
                output = task.forward(model, part)
                found = task.loss(output, part) if weight else nothing(output)
                loss = total_loss(found)
                share = weight / whole if weight and divided else None
                if share is not None:
                    loss = loss * share
                for name, value in named_losses(found).items():
                    value = value.detach() if share is None else value.detach() * share
                    named[name] = named[name] + value if name in named else value
                if len(with_losses):
                    loss = loss + auxiliary() / parts
                loss.backward() if alone(accelerator) else accelerator.backward(loss)
                for module in with_losses:  # blocks that are computed again note again what has been counted
                    module.noted.clear()  # type: ignore[union-attr, operator]
            total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return StepLoss(total, named)


def nothing(output: Any) -> Tensor:
    """0, the mean over no targets: every output gets the gradient 0, whatever it is."""
    return sum(tensor.flatten()[:0].sum() for tensor in tensors(output))  # type: ignore[return-value]


def tensors(output: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a model returns: nests of tuples and dicts, and objects of other libraries,
    whose attributes are looked through."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            if leaf.is_floating_point() or leaf.is_complex():
                yield leaf
        elif isinstance(leaf, Mapping):
            yield from tensors(dict(leaf))
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type):
            yield from tensors(dict(vars(leaf)))


def gather_objects(value: Any, world: int) -> list[Any]:
    if world == 1:
        return [value]
    found: list[Any] = [None] * world
    torch.distributed.all_gather_object(found, value)
    return found


@torch.no_grad()
def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """The buffers of the first process in every other: each batch norm has seen its own share of the last batch."""
    if accelerator.num_processes > 1:
        saved = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            if name in saved:
                value = buffer.contiguous()
                torch.distributed.broadcast(value, 0)
                buffer.copy_(value)


def agree(accelerator: Accelerator, stop: bool) -> bool:
    """True on every rank when any rank was asked to stop."""
    if accelerator.num_processes == 1:
        return stop
    return bool(accelerator.reduce(torch.tensor(float(stop), device=accelerator.device), "sum").item())
