"""Parts of FFNet for time series against published numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from matmix import load_published
from sequence.ffnet import JointPerceptron, SeriesChannelMixer
from tests.building import check_building, check_dtypes
from tests.fixtures import load_fixture


def _published() -> tuple:
    fixture = load_fixture("vision/ffnet_ts_channel_mixer")
    counters = [name for name, kind in fixture.data["buffers"].items() if kind == "integer"]
    state = fixture.state() | {name: torch.zeros((), dtype=torch.long) for name in counters}
    module = SeriesChannelMixer(3, 6, kernel=7, small=5).double().eval()
    return fixture, load_published(module, state, source="ysj9909/FFNet")


def test_published_channel_mixer() -> None:
    fixture, module = _published()
    assert sum(p.numel() for p in module.parameters()) == fixture.data["num_params"]
    out = module(fixture.input().flatten(1, 2).mT).mT.unflatten(1, (3, 6))
    fixture.check(out, atol=fixture.data["tolerance"]["float64_atol"], rtol=0)


def test_perceptron_shows_its_matrix() -> None:
    """In training with dropout too, where the same units are left out."""
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    for dropout in (0.0, 0.5):
        part = JointPerceptron(3, 4, dropout=dropout).double()

        def alike(run: Callable[[], Any]) -> Any:
            torch.manual_seed(0)
            return run()

        matrix, values, rest = alike(lambda part=part: part.project(x))
        told = part.merge(matrix.to_dense() @ values, rest)
        torch.testing.assert_close(told, alike(lambda part=part: part(x)))
        torch.testing.assert_close(told, alike(lambda part=part: part.mlp(x.mT).mT))
        assert torch.allclose(told, part(x)) == (not dropout)


def test_trains() -> None:
    _, module = _published()
    x = torch.randn(2, 9, 18, dtype=torch.float64)
    out = module.train()(x)
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    torch.testing.assert_close(module.eval()(x[:1]), module(x)[:1])


def test_is_built_and_saved_in_every_way(tmp_path: Path) -> None:
    x = torch.randn(2, 9, 18)
    check_building(lambda: SeriesChannelMixer(3, 6, kernel=7, small=5), x, tmp_path)
    check_dtypes(lambda: SeriesChannelMixer(3, 6, kernel=7, small=5), x)
