"""What a forecaster is told."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from matmix.ranges import check, numbers, one_of
from sequence.series.panel.frames import Duplicates, Gaps
from sequence.series.panel.quantiles import check_quantiles


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a forecaster is told; see `Forecaster`."""

    model: str = "itransformer"
    mixer: str = "default"
    horizon: int = 96
    lookback: int = 96
    freq: str | None = None
    known: tuple[str, ...] = ()
    together: bool | None = None
    gaps: Gaps = "fill"
    duplicates: Duplicates = "error"
    short: Literal["error", "drop"] = "error"
    quantiles: tuple[float, ...] = ()
    loss: Literal["mse", "mae"] = "mse"
    val_size: int | None = None
    steps: int = 500
    batch_size: int = 32
    lr: float = 1e-3
    patience: int = 5
    seed: int = 0
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        count, natural = numbers(1, whole=True), numbers(0, whole=True)
        check(
            self, horizon=count, lookback=count, steps=count, batch_size=count, patience=natural,
            gaps=one_of("fill", "error"), duplicates=one_of("error", "mean", "first", "last"),
            short=one_of("error", "drop"), loss=one_of("mse", "mae"),
        )  # fmt: skip
        if self.val_size is not None and self.val_size and self.val_size < self.horizon:
            raise ValueError(
                f"Settings.val_size must be 0, or at least the horizon of {self.horizon}, got {self.val_size}"
            )
        object.__setattr__(self, "quantiles", check_quantiles(self.quantiles))
        object.__setattr__(self, "known", tuple(self.known))
