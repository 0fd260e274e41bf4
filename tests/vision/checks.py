"""What the tests of several families ask of a small model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import vision
from matmix import load_published
from tests.fixtures import Fixture


def published_state(fixture: Fixture) -> dict[str, Tensor]:
    """Drawn weights, and the counters of batch norms, which fixtures leave out."""
    buffers = fixture.data.get("buffers", {})
    counters = [name for name, kind in buffers.items() if kind == "integer"]
    return fixture.state() | {name: torch.zeros((), dtype=torch.long) for name in counters}


def check_output(fixture: Fixture, model: nn.Module, source: str) -> None:
    """In float64 with the published weights: their number and the output at the fixture's tolerance."""
    model.double().eval()
    if isinstance(model, Tokens):
        model.load(published_state(fixture), source)
    else:
        load_published(model, published_state(fixture), source=source)
    assert sum(p.numel() for p in model.parameters()) == fixture.data["num_params"]
    with torch.no_grad():
        out = model(fixture.input())
    tolerance = fixture.data.get("tolerance", {})
    if not tolerance:
        fixture.check(out)
    elif "float64_atol" in tolerance:
        fixture.check(out, atol=tolerance["float64_atol"], rtol=0)
    else:
        fixture.check(out, atol=tolerance["float64"]["atol"], rtol=tolerance["float64"]["rtol"])


class Tokens(nn.Module):
    """A part between maps, as the published one that stands between tokens ``(B, L, C)``.

    Args:
        part: from a map (from an image, without ``grid``) to a map.
        grid: of the tokens that come in.
        below: what the published names begin with.
    """

    def __init__(self, part: nn.Module, grid: tuple[int, int] | None = None, below: str = "") -> None:
        super().__init__()
        self.part, self.grid, self.below = part, grid, below

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x if self.grid is None else x.unflatten(1, self.grid))
        return y.flatten(1, 2)

    def load(self, state: dict[str, Tensor], source: str) -> None:
        load_published(self.part, {name.removeprefix(self.below): v for name, v in state.items()}, source=source)


def check_count(name: str, count: int, **options: Any) -> nn.Module:
    """The number of parameters; the model, without numbers."""
    with torch.device("meta"):
        model = vision.create_model(name, **options)
    assert sum(p.numel() for p in model.parameters()) == count
    return model


def check_training(model: nn.Module, x: Tensor) -> None:
    """A gradient for every parameter, the same one with recomputation."""
    model.train()
    gradients = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        torch.manual_seed(0)
        model(x).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    without = [name for name, _ in model.named_parameters() if not gradients[0][name].abs().sum() > 0]
    assert not without, without
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
