"""A task of your own: read a sequence backwards.

    python examples/own_task.py                                              # trains two mixers on it
    matmix train reverse --import examples/own_task.py --mixer attention     # the same from the shell
    matmix study reverse --import examples/own_task.py --mixers attention dense sep_conv identity --seeds 2

Token i of the output is token L - 1 - i of the input, so the matrix that solves it is the antidiagonal one: a learned
dense matrix finds it, a filter (the same at every place) cannot hold it. A task is a frozen dataclass: its fields are
its settings, and with that options of the command line and part of a run's identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from matmix.experiments.registry import register_task
from matmix.experiments.task import Batch, Recipe
from matmix.experiments.tensor_task import TensorTask


@register_task("reverse")
@dataclass(frozen=True)
class Reverse(TensorTask):
    """Say a sequence of random tokens backwards."""

    length: int = 16
    vocabulary: int = 8
    dim: int = 32

    metric: ClassVar[str] = "accuracy"

    def recipe(self) -> Recipe:
        return Recipe(steps=150, batch_size=64, lr=5e-3, eval_every=50)

    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        sizes = {"train": 4096, "val": 512, "test": 512}
        inputs = {
            name: torch.randint(self.vocabulary, (size, self.length), generator=generator)
            for name, size in sizes.items()
        }
        return {name: (x, x.flip(1)) for name, x in inputs.items()}

    def model(self, mixer: str, seed: int) -> nn.Module:
        from sequence.encoder import Encoder

        return Encoder(
            lambda: nn.Embedding(self.vocabulary, self.dim),
            mixer,
            dim=self.dim,
            depth=1,
            grid=(self.length,),
            head="token",
            outputs=self.vocabulary,
            position="learned",
            seed=seed,
        )

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(output.flatten(0, 1), batch.y.flatten())

    def prediction(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return output.flatten(0, 1), batch.y.flatten()

    def metrics(self) -> dict[str, Any]:
        from torchmetrics.classification import MulticlassAccuracy

        return {"accuracy": MulticlassAccuracy(self.vocabulary, average="micro")}

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"chance": {"accuracy": 1 / self.vocabulary}}


if __name__ == "__main__":
    from matmix.experiments.config import RunConfig
    from matmix.experiments.run import execute

    with TemporaryDirectory() as folder:
        for mixer in ("dense", "sep_conv"):
            result = execute(RunConfig("reverse", mixer), Path(folder) / mixer)
            print(f"{mixer:>8}: accuracy {result.test['accuracy']:.3f}")
