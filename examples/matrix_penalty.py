"""A penalty on a matrix: attention that is asked to look nearby.

    python examples/matrix_penalty.py

The matrix that a mixer shows is the one that ran, gradients included, so whatever can be said of its entries can be a
term of the loss. Here it is the mean distance that a token looks, on a task (repeat the token of three places before)
that does not need to look far. `record` notes the matrices while the model runs, so nothing is computed twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import matmix
from matmix.inspect import record

LENGTH, WORDS, BACK = 32, 16, 3


class Model(nn.Module):
    """Embedding, one attention mixer, head."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.token = nn.Embedding(WORDS, dim)
        self.place = nn.Parameter(0.5 * torch.randn(LENGTH, dim))
        self.mixer = matmix.create_mixer("attention(head_dim=16)", dim)
        self.head = nn.Linear(dim, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token(x) + self.place
        return self.head(x + self.mixer(x))


def distance(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of the model, and how many tokens away its rows look on average."""
    place = torch.arange(LENGTH)
    apart = (place[:, None] - place).abs().float()
    with record(model) as matrices:
        output = model(x)
    found = [(matrix.to_dense() * apart).sum(-1).mean() for matrix in matrices.values()]
    return output, torch.stack(found).mean()


def train(weight: float, steps: int = 200) -> tuple[float, float]:
    """Accuracy and mean distance after training with the penalty at this weight."""
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        x = torch.randint(WORDS, (64, LENGTH))
        output, away = distance(model, x)
        loss = nn.functional.cross_entropy(output[:, BACK:].flatten(0, 1), x[:, :-BACK].flatten())
        optimizer.zero_grad()
        (loss + weight * away).backward()
        optimizer.step()
    with torch.no_grad():
        output, away = distance(model, x)
    right = (output[:, BACK:].argmax(-1) == x[:, :-BACK]).float().mean()
    return right.item(), away.item()


if __name__ == "__main__":
    for weight in (0.0, 0.02):
        accuracy, away = train(weight)
        print(f"weight {weight}: accuracy {accuracy:.2f}, a token looks {away:.1f} tokens away on average")
