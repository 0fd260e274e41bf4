"""Where a model begins: at the best weights of a finished run, all but those of its head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from matmix.experiments.config import RunConfig
from matmix.experiments.folder import Result, read_config


def run_below(
    folder: Path, mixers: set[str], seed: int, meant: Callable[[RunConfig], bool] = lambda config: True
) -> Path:
    """The folder itself where it is that of a run, else the one run below it of this mixer and seed that is meant.

    Raises:
        ValueError: where there is none, or more than one.
    """
    if (folder / "config.json").is_file():
        return folder
    runs = {path.parent: read_config(path.parent) for path in sorted(folder.glob("runs/**/config.json"))}
    found = [path for path, run in runs.items() if run.mixer in mixers and run.seed == seed and meant(run)]
    if len(found) != 1:
        mixer = min(mixers, key=len) or "of the regime"
        many = f"{len(found)} runs, {', '.join(map(str, found))}," if found else "no run"
        raise ValueError(f"init_from: {folder} holds {many} of the mixer {mixer!r} with seed {seed}; name one run")
    return found[0]


def finished(folder: Path) -> Result:
    """The result of a finished run.

    Raises:
        ValueError: where there is none.
    """
    result = Result.read(folder)
    if result is None or result.status != "finished":
        state = "no run" if result is None else f"a run that is {result.status}"
        raise ValueError(f"init_from: {folder} holds {state}; it must be the folder of a finished run")
    return result


def without(state: dict[str, Tensor], parts: tuple[str, ...]) -> dict[str, Tensor]:
    """Weights but those whose names begin with one of these."""
    return {name: value for name, value in state.items() if not name.startswith(parts)}


def load_part(model: nn.Module, given: dict[str, Tensor], wanted: dict[str, Tensor], folder: Path) -> None:
    """Load weights that must be those that are wanted, each in its shape; nothing is loaded where one is not.

    Raises:
        ValueError: naming every weight that does not fit.
    """
    wrong = [f"{name} is missing there" for name in wanted.keys() - given.keys()]
    wrong += [f"{name} is not part of this model" for name in given.keys() - wanted.keys()]
    wrong += [
        f"{name} is {tuple(given[name].shape)} there and {tuple(wanted[name].shape)} here"
        for name in given.keys() & wanted.keys()
        if given[name].shape != wanted[name].shape
    ]
    if wrong:
        raise ValueError(f"init_from: the weights of {folder} do not fit: {'; '.join(sorted(wrong))}")
    model.load_state_dict(given, strict=False)
