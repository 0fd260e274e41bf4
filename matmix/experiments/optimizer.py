"""What moves the weights: the optimiser of a recipe, and the running average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from matmix.experiments.extras import advice
from matmix.ops.marks import no_weight_decay
from matmix.spec import hint

if TYPE_CHECKING:
    from matmix.experiments.task import Recipe


def new_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser; decay on tensors with at least two axes that `no_weight_decay` does not name."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    spared = no_weight_decay(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim >= 2 and name not in spared].append(parameter)
    parameters = [
        {"params": groups[True], "weight_decay": recipe.weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":  # fused: one call for all tensors; on CPU too
        return torch.optim.AdamW(parameters, lr=recipe.lr, betas=recipe.betas, fused=True)
    try:
        import timm.optim
    except ImportError as error:
        raise ValueError(f"Recipe.optimizer={recipe.optimizer!r} is timm's; {advice(error)}") from None
    factory: Any = timm.optim
    known = factory.list_optimizers()
    if recipe.optimizer not in known:
        raise ValueError(
            f"Recipe.optimizer={recipe.optimizer!r} is no optimizer of timm{hint(recipe.optimizer, known)}"
        )
    betas = {"betas": recipe.betas} if factory.get_optimizer_info(recipe.optimizer).has_betas else {}
    made: torch.optim.Optimizer = factory.create_optimizer_v2(parameters, opt=recipe.optimizer, lr=recipe.lr, **betas)
    return made


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded moments the memory layout of their parameter (channels-last kernels): fused updates walk through
    parameter, gradient and moments as they lie in memory, and a checkpoint holds rows."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def running_average(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that follows it, buffers too: the first update copies, later ones go 1 - decay of the way."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
