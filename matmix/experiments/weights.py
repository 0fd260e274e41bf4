"""Weights from a file into a model: one's own or published ones, never by unpickling, never in part."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from matmix.experiments.manifest import check_file
from matmix.files import Damaged
from matmix.published import find_source, load_published, unwrap


def load_weights(model: nn.Module, path: Path | str, source: str = "") -> None:
    """Load a file into a model, strictly.

    Args:
        model: its weights are overwritten.
        path: a `.safetensors` file, or one of `torch.save` with nothing but tensors in it.
        source: `owner/repo` of the published code that wrote it (see `matmix.load_published`); "" = this library, or
            whichever of the sources that the model's class knows has just these names and shapes.

    Raises:
        ValueError: if the file cannot be read or does not fit; the message names the file and the weights.
    """
    state = read_weights(path)
    try:
        if source:
            load_published(model, state, source)
        else:
            model.load_state_dict(find_source(model, state)[1])
    except ValueError as error:
        raise ValueError(f"{path} does not fit {type(model).__name__}: {error}") from None


def read_weights(path: Path | str, run: str = "") -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; taken out of the usual wrappings ("state_dict", "model", "module.").

    Args:
        path: of the file. Where a run has finished it, it is compared with the checksum in `manifest.json`.
        run: the key of the run whose weights they must be, where they say whose they are; "" = of any.

    Raises:
        ValueError: if there is none, it cannot be read, or holds something else.
        Damaged: (a ValueError) if it is not what its run has finished, or is of another run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of weights {path}")
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                theirs = (file.metadata() or {}).get("run", "")
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if run and theirs not in ("", run):
                raise Damaged(path, f"weights of the run {run}", f"they are those of the run {theirs}")
            return state
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Damaged:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as weights: {reason} (only safetensors, and torch files without other objects)"
        ) from error
    found = unwrap(found)
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        kinds = ", ".join(map(str, list(found)[:6])) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"{path} holds no state dict of tensors but: {kinds or 'nothing'}")
    return found
