"""What a forecaster is told."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from matmix import settings as checked
from matmix.ranges import Count, Positive, Seed, Share, Whole
from sequence.series.panel.frames import Duplicates, Gaps
from sequence.series.panel.quantiles import check_quantiles


@dataclasses.dataclass(frozen=True)
class Settings(checked.Settings):
    """All that a forecaster is told; see `Forecaster`."""

    model: str = "itransformer"
    mixer: str = "default"
    horizon: Count = 96
    lookback: Count = 96
    freq: str | None = None
    known: tuple[str, ...] = ()
    together: bool | None = None
    gaps: Gaps = "fill"
    duplicates: Duplicates = "error"
    short: Literal["error", "drop"] = "error"
    quantiles: tuple[Share, ...] = ()
    loss: Literal["mse", "mae"] = "mse"
    val_size: Whole | None = None
    steps: Count = 500
    batch_size: Count = 32
    lr: Positive = 1e-3
    patience: Whole = 5
    seed: Seed = 0
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.val_size is not None and self.val_size and self.val_size < self.horizon:
            raise ValueError(
                f"Settings.val_size must be 0, or at least the horizon of {self.horizon}, got {self.val_size}"
            )
        object.__setattr__(self, "quantiles", check_quantiles(self.quantiles))
        object.__setattr__(self, "known", tuple(self.known))
