"""Models that cannot be operated on as they are, and what to do first."""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def refuse_wrappers(model: nn.Module) -> None:
    """Refuse compiled, scripted and distributed models: what wraps them has noted their modules already.

    Raises:
        TypeError: for what is no module.
        ValueError: for a model that is wrapped, or holds a part that is, with the advice what to do first.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        why = _wrapped(module)
        if why:
            raise ValueError(f"{name or 'the model'} is {why}")


def _wrapped(module: nn.Module) -> str | None:
    kind = type(module).__name__
    if kind == "OptimizedModule" and hasattr(module, "_orig_mod"):
        return "compiled: operate on model._orig_mod, then compile again"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "compiled by .compile(): operate on a model that is not, then compile it"
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted: operate on the model in Python, then script it"
    if isinstance(module, DistributedDataParallel | DataParallel):
        return f"wrapped in {kind}: operate on model.module with the same seed in every process, then wrap it"
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not loaded: nothing can be wrapped in it
    classes = [getattr(fsdp, one, None) for one in ("FullyShardedDataParallel", "FSDPModule")]
    if any(cls is not None and isinstance(module, cls) for cls in classes):
        return f"sharded by FSDP ({kind}): operate on the model before it is sharded"
    return None
