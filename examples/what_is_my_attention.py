"""What is my attention? Train a small model, and ask which structured matrices its heads have become.

    python examples/what_is_my_attention.py

The task is to repeat the token of three places before, round the end of the sequence. A block of attention learns it
with its positions: what its heads compute then is one fixed matrix, a shift, which needs no queries and keys. `explain`
says so, with the error of putting the structured matrix in its place, and draws it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import matmix
from matmix import surgery

LENGTH, WORDS, BACK = 24, 12, 3


class Model(nn.Module):
    """Embedding, one head of attention, and a layer that reads."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.token = nn.Embedding(WORDS, dim)
        self.place = nn.Parameter(torch.randn(LENGTH, dim))
        self.mixer = matmix.create_mixer("attention(head_dim=32)", dim)
        self.head = nn.Linear(dim, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mixer(self.token(x) + self.place))


def train(model: nn.Module, steps: int) -> float:
    """Accuracy on fresh sequences after training."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        x = torch.randint(WORDS, (64, LENGTH))
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), x.roll(BACK, 1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randint(WORDS, (256, LENGTH))
    return (model(x).argmax(-1) == x.roll(BACK, 1)).float().mean().item()


if __name__ == "__main__":
    torch.manual_seed(0)
    model = Model()
    batches = [torch.randint(WORDS, (8, LENGTH))]  # a few inputs are enough
    for steps in (0, 300):
        print(f"after {steps} steps, accuracy {train(model, steps):.2f}:")
        found = surgery.explain(model, batches)
        for head in found.heads:
            print(f"  {head}")
    print(found)  # what it costs, and how far the matrices vary over the data
    print("picture:", found.picture(Path("what_is_my_attention.png")))
    small = [row for row in found.rows if row["explains"]]  # not those with nearly as many free numbers as any matrix
    near = sorted(small, key=lambda row: row["error"])[:3]
    print("nearest classes:", ", ".join(f"{row['class']} {100 * row['error']:.1f} %" for row in near))
