"""The legend of shapes, read by a program: what a matrix class states of its tensors is what a person's tensors are
held to.

A field says its axes as ``axes("B|1 H L N")``: a letter has one size in all fields of a matrix (``sizes``), ``|1`` also
lets 1 through, a number is a size, ``2L-1`` and ``n/2`` are sizes too, ``*half`` is any number of axes. B may be 1
everywhere.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import torch
from torch import Tensor

from matmix.ranges import shown as given

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_AXIS = re.compile(r"(?P<times>\d*)(?P<letter>[A-Za-z_]+)(?:/(?P<over>\d+))?(?P<plus>[+-]\d+)?")


def axes(legend: str, dtype: torch.dtype | None = None, **options: Any) -> Any:
    """A field that is a tensor with these axes; floating point where no dtype is said, any integer where int64 is."""
    return dataclasses.field(metadata={"axes": legend, "dtype": dtype}, **options)


def fit(owner: str, name: str, value: Any, legend: str, dtype: torch.dtype | None, sizes: dict[str, int]) -> None:
    """Hold a tensor, or a matrix within a matrix, to its legend, and note the sizes of letters that were not known.

    Raises:
        ValueError: for what is neither, for another kind of numbers, another number of axes, or a size that another
            field contradicts.
    """
    words = legend.split()
    shown = f"({', '.join(word.replace('|', ' or ') for word in words)}{',' if len(words) == 1 else ''})"
    if isinstance(value, Tensor):
        if layout := undense(value):
            raise ValueError(f"{owner}: {name} must be a dense tensor {shown}, got one that is {layout}")
        kind, fits = _kind(value, dtype)
        if not fits:
            raise ValueError(f"{owner}: {name} must be {kind} {shown}, got {value.dtype}")
    elif hasattr(value, "to_dense"):
        kind = "a matrix"
    else:
        raise ValueError(f"{owner}: {name} must be a tensor {shown}, got {type(value).__name__} {given(value)}")
    shape = list(value.shape)
    star = next((place for place, word in enumerate(words) if word[0] == "*"), None)
    if star is not None and len(shape) >= len(words):
        extra = len(shape) - len(words) + 1
        if 0 in shape[star : star + extra]:
            raise ValueError(f"{owner}: {name} must be {kind} {shown} without an axis of 0, got {tuple(value.shape)}")
        del shape[star : star + extra], words[star]
    if len(shape) != len(words):
        raise ValueError(f"{owner}: {name} must be {kind} {shown}, got {tuple(value.shape)}")
    for word, size in zip(words, shape, strict=True):
        trouble = _axis(word, size, sizes)
        if trouble:
            raise ValueError(f"{owner}: {name} must be {kind} {shown}, got {tuple(value.shape)}: {trouble}")


def undense(tensor: Tensor) -> str:
    """What a tensor is that is not dense, for errors; "" for one that is."""
    return "nested" if tensor.is_nested else "" if tensor.layout == torch.strided else str(tensor.layout)


def check_window(owner: str, grid: tuple[int, ...], window: tuple[int, ...], sizes: dict[str, int]) -> None:
    """A ValueError where a window does not slide over a grid, or the grid has not the places of the tensors."""
    if len(window) != len(grid) or min(window) < 1:
        raise ValueError(f"{owner}: window must be positive for each axis of the grid {grid}, got {window}")
    places = math.prod(grid)
    if sizes.get("L", places) != places:
        raise ValueError(f"{owner}: grid must have {sizes['L']} places, got {grid}")


def _kind(value: Tensor, dtype: torch.dtype | None) -> tuple[str, bool]:
    """The kind of numbers that is asked for, and whether these are."""
    if dtype is None:
        return "floating point", value.dtype in FLOATS
    if dtype == torch.bool:
        return "bool", value.dtype == torch.bool
    return "integers", not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def _axis(word: str, size: int, sizes: dict[str, int]) -> str:
    """What is wrong with the size of an axis, in words; "" where nothing is."""
    word, _, one = word.partition("|")
    if size == 1 and (one or word == "B"):
        return ""
    if word.isdigit():
        return "" if size == int(word) else f"{size} is not {word}"
    parts = _AXIS.fullmatch(word)
    assert parts is not None, word
    times, over, plus = int(parts["times"] or 1), int(parts["over"] or 1), int(parts["plus"] or 0)
    letter = parts["letter"]
    found, rest = divmod((size - plus) * over, times)
    if rest or found < 0:
        return f"{size} is no {word}"
    if letter[0] in "LHG" and not found:
        return f"{letter} must be at least 1"
    if sizes.setdefault(letter, found) != found:
        wanted = sizes[letter] * times // over + plus
        return f"{letter} is {sizes[letter]} elsewhere" + (f", so {word} is {wanted}" if word != letter else "")
    return ""
