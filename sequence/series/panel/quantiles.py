"""Quantiles beside the forecasts of any model, trained by the pinball loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MEDIAN = 0.5


class WithQuantiles(nn.Module):
    """A model whose forecast is the median, and a head that says how far the other quantiles are from it.

    The steps between neighbouring quantiles are `softplus` of one linear map over the window and its forecast, both
    relative to the mean and the deviation of the window; so quantiles never cross, and they scale as the series does.

    Args:
        model: called on a window `x` (B, L, C) it gives (B, horizon, C).
        lookback: L.
        horizon: steps of its forecast.
        quantiles: in rising order, 0.5 among them.
    """

    FLOOR = 0.01
    """Added to the variance of a window, in units of the series: a flat window is not without doubt."""

    def __init__(self, model: nn.Module, lookback: int, horizon: int, quantiles: Sequence[float]) -> None:
        super().__init__()
        self.model, self.horizon = model, horizon
        self.middle = list(quantiles).index(MEDIAN)
        self.steps = len(quantiles) - 1
        self.head = nn.Linear(lookback + horizon, horizon * self.steps)
        nn.init.constant_(self.head.bias, -1.0)  # steps of about 0.3 deviations to begin with

    def forward(self, x: Tensor, marks: Tensor | None = None, future_marks: Tensor | None = None) -> Tensor:
        """Quantiles (B, horizon, C, Q)."""
        median = self.model(x, marks, future_marks)
        mean = x.mean(1, keepdim=True)
        deviation = (x.var(1, keepdim=True, unbiased=False) + self.FLOOR).sqrt()
        seen = torch.cat([(x - mean) / deviation, (median - mean) / deviation], 1).mT
        widths = nn.functional.softplus(self.head(seen)).unflatten(-1, (self.horizon, self.steps))
        widths = widths.transpose(1, 2) * deviation.unsqueeze(-1)
        below, above = widths[..., : self.middle], widths[..., self.middle :]
        down = below.flip(-1).cumsum(-1).flip(-1)
        median = median.unsqueeze(-1)
        return torch.cat([median - down, median, median + above.cumsum(-1)], -1)


def pinball(quantiles: Sequence[float], forecast: Tensor, truth: Tensor) -> Tensor:
    """The pinball loss of quantiles (..., Q) against the truth (...), its mean over the quantiles."""
    levels = torch.tensor(quantiles, dtype=forecast.dtype, device=forecast.device)
    over = truth.unsqueeze(-1) - forecast
    return torch.maximum(levels * over, (levels - 1) * over).mean(-1)


def check_quantiles(quantiles: Sequence[float]) -> tuple[float, ...]:
    """In rising order, with the median, which the forecast is; none stay none.

    Raises:
        ValueError: for one that is not between 0 and 1.
    """
    if not all(isinstance(level, float) and 0 < level < 1 for level in quantiles):
        raise ValueError(f"quantiles must be between 0 and 1, such as (0.1, 0.5, 0.9), got {tuple(quantiles)}")
    return tuple(sorted({*quantiles, MEDIAN})) if quantiles else ()
