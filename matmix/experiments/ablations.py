"""What a trained model scores with other matrices, or with its inputs in another order: what its mixers do for it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from matmix.experiments.operation import INPUT, Surgery, some_inputs
from matmix.experiments.task import Batch, Recipe, Task
from matmix.sampling import stream
from matmix.surgery import ablate

if TYPE_CHECKING:
    from matmix.experiments.scoring import Scorer


def ablated(
    name: str, task: Task, model: nn.Module, scorer: Scorer, surgery: Surgery, recipe: Recipe, seed: int
) -> dict[str, float]:
    """Test scores of a model under one of `operation.ABLATIONS`, at the sites of the surgery.

    Raises:
        ValueError, NotImplementedError: for one that is not possible, with the reason.
    """
    if name == INPUT:
        return scorer(model, "test", change=partial(_reordered, task))
    device = next(model.parameters()).device

    def there(nest: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.to(device), nest)

    batches = [there(one) for one in some_inputs(task, recipe, seed)] if name == "mean" else None
    where = [site.name for site in surgery.sites(model, there(task.example()))]
    with ablate(model, where, name, batches=batches, seed=seed):
        return scorer(model, "test")


def _reordered(task: Task, batch: Batch, number: int) -> Batch:
    return task.in_another_order(batch, torch.Generator().manual_seed(stream(0, number)))
