"""The losses of training since the last line of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from matmix.experiments.step import StepLoss, gather_objects


class RunningLoss:
    """Sums over the steps. They stay on the device, since reading one would wait for its step."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.total, self.count = torch.zeros((), device=accelerator.device), 0
        self.parts: dict[str, Tensor] = {}

    def add(self, loss: StepLoss) -> None:
        self.total += loss.total
        for name, value in loss.parts.items():
            self.parts[name] = self.parts[name] + value if name in self.parts else value
        self.count += 1

    def mean(self) -> dict[str, float]:
        """The loss, and its parts where it has some, over the steps and the processes; one that met no target has no
        parts."""
        world = self.accelerator.num_processes
        mean = self.accelerator.reduce(self.total, "mean").item() / self.count
        found = gather_objects({name: part.item() for name, part in self.parts.items()}, world)
        names = dict.fromkeys(name for each in found for name in each)
        scale = self.count * world
        return {"loss": mean, **{f"loss.{name}": sum(each.get(name, 0.0) for each in found) / scale for name in names}}

    def clear(self) -> None:
        self.total.zero_()
        self.parts, self.count = {}, 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of this process."""
        parts = {name: part.cpu() for name, part in self.parts.items()}
        return {"total": self.total.cpu(), "count": self.count, "parts": parts}

    def load(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from the states of all processes: each with its own where they are as many, else each with the mean."""
        if len(states) == self.accelerator.num_processes:
            states = [states[self.accelerator.process_index]]
        device = self.accelerator.device
        self.total = torch.stack([state["total"] for state in states]).mean(0).to(device)
        self.count = states[0]["count"]
        names = dict.fromkeys(name for state in states for name in state["parts"])
        zero = torch.zeros(())
        self.parts = {
            name: torch.stack([state["parts"].get(name, zero) for state in states]).mean(0).to(device) for name in names
        }
