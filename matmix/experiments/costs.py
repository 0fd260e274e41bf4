"""What a model costs, counted on the example of its task."""

from __future__ import annotations

from torch import nn

from matmix.experiments.task import Task


def costs(task: Task, model: nn.Module) -> dict[str, int]:
    """Parameters, multiply-accumulates and FFT operations for one example."""
    from matmix.cost import count

    device = next(model.parameters()).device
    report = count(model, *(part.to(device) for part in task.example()))
    return {"parameters": report.parameters, "macs": report.macs, "fft_flops": report.fft_flops}
