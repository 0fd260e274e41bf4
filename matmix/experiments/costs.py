"""What a model costs, counted on the example of its task."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from matmix.cost import measure
from matmix.experiments.task import Task, inputs_of


def costs(task: Task, model: nn.Module) -> dict[str, int | None]:
    """Parameters, multiply-accumulates and FFT operations for one example, the state behind it, and its tokens."""
    device = next(model.parameters()).device
    args, named = inputs_of(tree_map_only(Tensor, lambda tensor: tensor.to(device), task.example()))
    found = measure(model, *args, **named)
    return {
        "parameters": found.report.parameters, "macs": found.report.macs, "fft_flops": found.report.fft_flops,
        "state_bytes": found.state_bytes, "tokens": found.tokens,
    }  # fmt: skip
