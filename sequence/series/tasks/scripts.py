"""Sizes and training of each model on each data set, as the scripts of the Time Series Library have them.

What a script leaves out is the library's default, which is that of the model here. `thuml/Time-Series-Library@4e938a1`,
folder `scripts`; S-Mamba's are those of `Thrillcrazyer/JustDense@28285e3`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

HORIZONS = (96, 192, 336, 720)
SHORT_HORIZONS = (24, 36, 48, 60)
"""Of weekly illness data."""


@dataclasses.dataclass(frozen=True)
class Script:
    """How a model was built and trained."""

    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the model that are not its defaults."""
    batch_size: int = 32
    lr: float = 1e-4
    epochs: int = 10

    def changed(self, settings: Mapping[str, Any]) -> Script:
        """Some of it set anew; what is no field is a size."""
        own = {field.name for field in dataclasses.fields(self)} - {"sizes"}
        training = {name: value for name, value in settings.items() if name in own}
        return dataclasses.replace(
            self, sizes={**self.sizes, **{k: v for k, v in settings.items() if k not in own}}, **training
        )


# By model and data set: a value for all horizons, or a list with one for each.
_ETT = ("ETTh1", "ETTh2", "ETTm1", "ETTm2")
_FORECAST: dict[str, dict[str, dict[str, Any]]] = {
    "transformer": {
        "Exchange": {"epochs": [10, 10, 1, 10]},
        "Weather": {"epochs": [3, 10, 10, 10]},
        "Traffic": {"epochs": 3},
    },
    "autoformer": {
        "Exchange": {"epochs": [10, 1, 1, 10]},
        "Weather": {"epochs": [2, 10, 10, 10]},
        "Traffic": {"epochs": 3},
    },
    "patchtst": {
        "ETTh1": {"depth": 1, "heads": [2, 8, 8, 16]},
        "ETTh2": {"depth": 3, "heads": 4},
        "ETTm1": {"depth": [1, 3, 1, 3], "heads": [2, 2, 4, 4], "batch_size": [32, 128, 128, 128]},
        "ETTm2": {"depth": [3, 3, 1, 3], "heads": [16, 2, 4, 4], "batch_size": [32, 128, 32, 128]},
        "Exchange": {"depth": 2, "heads": 8, "epochs": [10, 10, 1, 10]},
        "Weather": {"depth": 2, "heads": [4, 16, 4, 4], "batch_size": [32, 32, 128, 128], "epochs": 3},
        "ECL": {"depth": 2, "heads": 8, "batch_size": 16},
        "Traffic": {"depth": 2, "heads": 8, "dim": 512, "hidden": 512, "batch_size": 4},
        "ILI": {"depth": 4, "heads": 4, "dim": [1024, 2048, 2048, 2048]},
    },
    "itransformer": {
        **{name: {"dim": 128, "hidden": 128} for name in _ETT},
        "Weather": {"depth": 3, "dim": 512, "hidden": 512},
        "ECL": {"depth": 3, "dim": 512, "hidden": 512, "batch_size": 16, "lr": 5e-4},
        "Traffic": {"depth": 4, "dim": 512, "hidden": 512, "batch_size": 16, "lr": 1e-3},
    },
    "timesnet": {
        "ETTh1": {"dim": 16, "hidden": 32},
        "ETTh2": {"dim": 32, "hidden": 32},
        "ETTm1": {"dim": [64, 64, 16, 16], "hidden": [64, 64, 32, 32], "epochs": [10, 10, 3, 10]},
        "ETTm2": {"dim": [32, 32, 32, 16], "hidden": 32, "epochs": [10, 1, 10, 1]},
        "Exchange": {"dim": [64, 64, 32, 32], "hidden": [64, 64, 32, 32], "epochs": [10, 10, 1, 1]},
        "Weather": {"dim": 32, "hidden": 32, "epochs": [10, 1, 10, 1]},
        "ECL": {"dim": 256, "hidden": 512},
        "Traffic": {"dim": 512, "hidden": 512},
        "ILI": {"dim": 768, "hidden": 768},
    },
    "tsmixer": {"Weather": {"hidden": 32}, "ECL": {"hidden": 256}, "Traffic": {"lr": 1e-3}},
    "s_mamba": {
        "ETTh1": {"depth": 1, "dim": 256, "hidden": 256, "d_state": 2, "lr": 7e-5},
        "ETTh2": {"depth": 1, "dim": 256, "hidden": 256, "d_state": 2, "lr": 4e-5},
    },
}
_IMPUTATION = {"depth": 2, "heads": 8, "dim": 128, "hidden": 128}
_M4 = {"depth": 2, "heads": 8, "dim": 512, "hidden": 2048}
_M4_OWN = {"timesnet": {"dim": 32, "hidden": 32}, "mamba": {"dim": 128}, "tsmixer": {"hidden": 16}}


def forecast(model: str, data: str, horizon: int) -> Script:
    """For a model and a data set by their names; the defaults where there is no script."""
    settings = _FORECAST.get(model, {}).get(data, {})
    horizons = SHORT_HORIZONS if data == "ILI" else HORIZONS
    index = next((at for at, known in enumerate(horizons) if horizon <= known), len(horizons) - 1)
    return Script().changed({k: v[index] if isinstance(v, list) else v for k, v in settings.items()})


def imputation(model: str, data: str, known: Collection[str]) -> Script:
    """Of one size for all; `known` are the options that the model has."""
    sizes = {name: size for name, size in _IMPUTATION.items() if name in known}
    if model == "timesnet" and data in _ETT:
        sizes = {"dim": 16, "hidden": 32}
    return Script(sizes, batch_size=16, lr=1e-3)


def m4(model: str, known: Collection[str]) -> Script:
    """Whatever the frequency; `known` are the options that the model has."""
    sizes = _M4_OWN.get(model) or {name: size for name, size in _M4.items() if name in known}
    return Script(dict(sizes), batch_size=16, lr=1e-3)
