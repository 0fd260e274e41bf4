"""Published outputs: load a case of tests/reference, draw its weights and inputs, compare.

Weights and inputs are drawn from their names (tests/reference/weights.py), so a case is a few kilobytes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.reference.weights import draw, draw_input, draw_tokens

ROOT = Path(__file__).parent / "reference"

_THEN = {
    "softplus": torch.nn.functional.softplus,
    "neg_exp": lambda x: -x.exp(),
    "logsigmoid": torch.nn.functional.logsigmoid,
    "sigmoid": torch.sigmoid,
    "l2norm": lambda x: torch.nn.functional.normalize(x, dim=-1),
}


# Words of mamba-ssm and Hydra for what mixers here call otherwise.
_OURS = {
    "d_model": "dim", "headdim": "head_dim", "ngroups": "groups", "chunk_size": "chunk", "rmsnorm": "out_norm",
    "is_outproj_norm": "out_norm", "D_has_hdim": "D_per_channel",
}  # fmt: skip


class Fixture:
    """One published module or function: its configuration, weights, inputs and outputs."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.config: dict[str, Any] = data.get("config", {})

    def options(self) -> dict[str, Any]:
        """The configuration in the words of our mixers."""
        return {_OURS.get(name, name): value for name, value in self.config.items()}

    def state(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """The published state dict with its drawn weights (buffers that keep their own value are left out)."""
        state = {}
        entries = {**self.data.get("parameters", {}), **self.data.get("buffers", {})}
        literals = self.data.get("literals", {})
        for name, shape in entries.items():
            if name in literals:
                values = literals[name]
                values = values.get("values", values) if isinstance(values, dict) else values
                size = shape["shape"] if isinstance(shape, dict) else shape
                state[name] = torch.tensor(values, dtype=dtype).reshape(tuple(size))
                continue
            if isinstance(shape, str):  # "integer": a counter
                continue
            if isinstance(shape, dict) and shape.get("kind") == "counter":
                state[name] = torch.zeros(tuple(shape["shape"]), dtype=torch.int64)
                continue
            if isinstance(shape, dict):
                marks = ("integer", "kept", "computed", "counter")
                if shape.get("kind") in marks or any(shape.get(mark) for mark in marks):
                    continue
                shape = shape["shape"]
            state[name] = torch.from_numpy(np.asarray(draw(name, tuple(shape)))).to(dtype)
        return state

    def input(self, name: str | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
        """One input by its name; the only one where none is named."""
        entries = self.data.get("inputs") or self.data["input"]
        entries = {"input": entries} if "shape" in entries else entries
        if name is None:
            (name,) = entries
        entry = entries[name]
        shape, kind = tuple(entry["shape"]), entry.get("kind", "normal")
        if kind == "literal":
            return torch.tensor(entry["values"]).reshape(shape)
        if kind == "tokens":
            tokens = draw_tokens(shape, entry["vocabulary"], entry.get("name", name))
            return torch.from_numpy(tokens)
        if kind in ("mask_from_lengths", "padding_mask"):
            lengths = torch.tensor(entry["lengths"]).unsqueeze(1)
            return (torch.arange(shape[1]) < lengths).to(dtype)
        if kind not in ("normal", "normal_masked", "mask"):
            raise ValueError(f"input kind {kind!r} of {name} is not handled")
        values = torch.from_numpy(draw_input(shape, entry.get("name", name)))
        if kind == "mask":
            return (values > entry["threshold"]).to(dtype)
        if kind == "normal_masked":
            values = values * self.input(entry["mask"], values.dtype)
        return _THEN[entry["then"]](values).to(dtype) if entry.get("then") else values.to(dtype)

    def expected(self, key: str = "output") -> dict[str, Any]:
        """The stored output ``key`` (``output``, ``output_float64``, or one of the further outputs)."""
        return self.data[key] if key in self.data else self.data["outputs"][key]

    def check(self, result: Tensor, key: str = "output", atol: float | None = None, rtol: float = 1e-8) -> None:
        """Compare with the published numbers; float64 at 1e-8 unless told otherwise."""
        entry = self.expected(key)
        if "shape" in entry:
            assert tuple(result.shape) == tuple(entry["shape"]), (tuple(result.shape), entry["shape"])
        if result.is_complex():
            result = torch.view_as_real(result.resolve_conj())
        flat = result.detach().double().flatten().numpy()
        if entry.get("indices") is not None:
            flat = flat[np.asarray(entry["indices"])]
        values = np.asarray(entry["values"], dtype=np.float64)
        assert flat.shape == values.shape, (flat.shape, values.shape)
        if atol is None:
            atol = 1e-9 * max(1.0, float(np.abs(values).max(initial=0.0)))
        np.testing.assert_allclose(flat, values, rtol=rtol, atol=atol)
        if "mean" in entry and entry.get("indices") is not None:
            assert math.isclose(result.detach().double().mean().item(), entry["mean"], rel_tol=1e-6, abs_tol=1e-8)


def load_fixture(name: str) -> Fixture:
    """A case by its path below tests/reference, without ``.json``."""
    return Fixture(json.loads((ROOT / f"{name}.json").read_text()))
