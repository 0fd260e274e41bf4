"""A forecaster as a folder: `forecaster.json` and `weights.safetensors`. Nothing in it is executed when it is read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from matmix.checksums import check_sealed, seal
from matmix.experiments.task import build
from matmix.files import Damaged, Keys, read_json, shaped
from matmix.folders import claim, names_in
from sequence.series.panel.dates import to_step
from sequence.series.panel.frames import Panel, Series
from sequence.series.panel.settings import Settings
from sequence.series.panel.task import Scale

KIND, NAME, WEIGHTS, FORMAT, MODEL = "forecaster", "forecaster.json", "weights.safetensors", 1, "model."


class Kept(NamedTuple):
    """What a trained forecaster is."""

    settings: Settings
    panel: Panel
    scales: dict[tuple[str, ...], Scale]
    covariates: Scale
    notes: list[str]
    weights: dict[str, Tensor]


def save(kept: Kept, folder: Path) -> None:
    """Settings, weights, units and the end of the history, as much as a forecast reads."""
    from safetensors.torch import save_file

    tensors = {f"{MODEL}{name}": value.cpu().contiguous() for name, value in kept.weights.items()}
    series: list[dict[str, Any]] = []
    for number, one in enumerate(kept.panel.series):
        one = _tail(one, kept.settings.lookback)
        scale = kept.scales[one.names]
        arrays = {"values": one.values, "known": one.known, "mean": scale.mean, "std": scale.std}
        tensors |= {f"series.{number}.{name}": torch.from_numpy(array.copy()) for name, array in arrays.items()}
        zone = one.dates.tz
        begin = one.dates[0] if zone is None else one.dates[0].tz_convert("UTC")
        series.append({"names": one.names, "start": begin.isoformat(), "zone": zone and str(zone)})
    tensors["known.mean"], tensors["known.std"] = (torch.from_numpy(array) for array in kept.covariates)
    about = {
        "format": FORMAT,
        "settings": dataclasses.asdict(kept.settings),
        "freq": kept.panel.freq.freqstr,
        "series": series,
        "notes": kept.notes,
    }
    claim(folder, KIND, _is_forecaster, "folder")
    save_file(tensors, folder / WEIGHTS)
    (folder / NAME).write_text(json.dumps(about, indent=1) + "\n")
    seal(folder, KIND, (NAME, WEIGHTS))


def _is_forecaster(folder: Path) -> bool:
    """Whether nothing stands in a folder without a marker but what `save` writes: it was made before there were any."""
    return names_in(folder) == {NAME, WEIGHTS}


def load(folder: Path) -> Kept:
    """What `save` wrote.

    Raises:
        ValueError: where the folder holds no forecaster, one of a format to come, or one that is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / NAME).is_file() or not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no forecaster: there is no {NAME} with {WEIGHTS}")
    check_sealed(folder, KIND, "a forecaster as it was saved")
    about = read_json(folder / NAME, "a forecaster", {"format": Any})
    if about["format"] != FORMAT:
        raise ValueError(f"{folder / NAME} is of format {about['format']!r}; this matmix reads format {FORMAT}")
    shaped(about, _KEYS, folder / NAME, "a forecaster")
    for number, one in enumerate(about["series"], 1):
        shaped(one, _SERIES, folder / NAME, f"a forecaster's series {number}")
    try:
        return _kept(about, load_file(folder / WEIGHTS))
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise Damaged(folder, "a forecaster", f"{type(error).__name__}: {error}") from error


_KEYS: Keys = {"settings": dict[str, Any], "freq": str, "series": list[dict[str, Any]], "notes": list[str]}
_SERIES: Keys = {"names": list[str], "start": str, "zone": str | None}


def _kept(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Kept:
    step = to_step(about["freq"])
    found: list[Series] = []
    scales = {}
    for number, one in enumerate(about["series"]):
        values, known, mean, std = (
            tensors[f"series.{number}.{name}"].numpy() for name in ("values", "known", "mean", "std")
        )
        begin = pd.Timestamp(one["start"])
        begin = begin if one["zone"] is None else begin.tz_convert(one["zone"])
        names = tuple(one["names"])
        found.append(Series(names, pd.date_range(begin, periods=len(values), freq=step), values, known))
        scales[names] = Scale(mean, std)
    return Kept(
        build(Settings, about["settings"]),
        Panel(found, step, []),
        scales,
        Scale(tensors["known.mean"].numpy(), tensors["known.std"].numpy()),
        about["notes"],
        {name.removeprefix(MODEL): value for name, value in tensors.items() if name.startswith(MODEL)},
    )


def _tail(one: Series, lookback: int) -> Series:
    """As many steps as a forecast depends on: a gap at the start of its window is filled from the last value before."""
    seen = ~np.isnan(one.values)
    begin = len(one.dates) - lookback
    earlier = seen[: begin + 1]
    last = np.where(earlier.any(0), begin - np.argmax(earlier[::-1], 0), begin)
    begin = int(last.min())
    return Series(one.names, one.dates[begin:], one.values[begin:], one.known[begin:])
