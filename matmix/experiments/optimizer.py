"""What moves the weights: the optimiser of a recipe, and the running average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from matmix.experiments.extras import advice
from matmix.ops.marks import grouped, no_weight_decay, optim_settings
from matmix.spec import hint

if TYPE_CHECKING:
    from matmix.experiments.recipe import Recipe


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameters with decay, those without, and then those with settings of their own (see `grouped`)."""
    spared, marked, groups = no_weight_decay(model), optim_settings(model), recipe.parsed_groups()

    def each() -> Iterator[tuple[nn.Parameter, bool, dict[str, float]]]:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                decays = recipe.decayed == "all" or name not in spared
                decays &= recipe.decayed != "matrices" or parameter.ndim >= 2
                named = next((group.settings for group in groups if group.names(name)), {})
                yield parameter, decays, {**marked.get(name, {}), **named}

    return grouped(each(), recipe.weight_decay)


def unused_groups(model: nn.Module, recipe: Recipe) -> list[str]:
    """Those of `Recipe.groups` that name no parameter of this model."""
    names = [name for name, _ in model.named_parameters()]
    return [
        text
        for text, group in zip(recipe.groups, recipe.parsed_groups(), strict=True)
        if not any(group.names(name) for name in names)
    ]


def describe_groups(optimizer: torch.optim.Optimizer, recipe: Recipe) -> tuple[dict[str, float], ...]:
    """The groups that hold parameters: their number of tensors and of numbers, highest learning rate and decay."""
    return tuple(
        {
            "tensors": len(group["params"]),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "lr": group.get("initial_lr", recipe.lr),
            "weight_decay": group["weight_decay"],
        }
        for group in optimizer.param_groups
        if group["params"]
    )


def set_step(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """Learning rates, and what else of the optimiser a schedule moves, as they are in update `step`."""
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr_at(step, group.get("initial_lr"))
        if recipe.schedule == "onecycle":
            group["betas"] = (recipe.beta_at(step), *group["betas"][1:])


def new_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over `parameter_groups`."""
    parameters = parameter_groups(model, recipe)
    eps: dict[str, Any] = {"eps": recipe.eps} if recipe.eps else {}
    if recipe.optimizer == "adamw":  # fused: one call for all tensors; on CPU too
        return torch.optim.AdamW(parameters, lr=recipe.lr, betas=recipe.betas, fused=True, **eps)
    if recipe.optimizer == "radam":
        return torch.optim.RAdam(parameters, lr=recipe.lr, betas=recipe.betas, **eps)
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
    about = factory.get_optimizer_info(recipe.optimizer)
    for lacking, field, given in (
        (not about.has_betas, "schedule", recipe.schedule == "onecycle"),
        (not about.has_eps, "eps", bool(recipe.eps)),
    ):
        if lacking and given:
            raise ValueError(f"Recipe.{field}={getattr(recipe, field)!r} moves what {recipe.optimizer!r} does not have")
    more = {**({"betas": recipe.betas} if about.has_betas else {}), **eps}
    try:
        made: torch.optim.Optimizer = factory.create_optimizer_v2(
            parameters, opt=recipe.optimizer, lr=recipe.lr, **more
        )
    except (AssertionError, ImportError) as error:  # bitsandbytes and APEX need a GPU, and to be installed
        raise ValueError(f"Recipe.optimizer={recipe.optimizer!r} must be able to run here: {error}") from None
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
