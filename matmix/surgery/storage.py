"""save and apply: a replacement as a folder, and that folder on another copy of the model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from matmix.adapters import Found, discover
from matmix.arguments import checking_arguments
from matmix.checksums import check_sealed, seal
from matmix.files import Damaged, Keys, read_json, shaped
from matmix.folders import claim, names_in
from matmix.surgery.refuse import refuse_wrappers
from matmix.surgery.replace import commit, plan
from matmix.surgery.report import Report, Row

FORMAT = 1
KIND = "surgery"
WORDS = "surgery.json"
WEIGHTS = "surgery.safetensors"
_SITE = ("adapter", "dim", "module_class", "heads", "head_dim", "prefix", "parameters")  # what must be the same
_RUN = ("kind", "length", "memory", "grid", "causal", "padded", "seen", "prefix_as")  # told by a run or a user
_KEYS: Keys = {"init": Any, "model": dict[str, list[int]], "sites": list[dict[str, Any]]}
_ROW: Keys = {"name": str, "level": Any, "spec": Any, "seed": Any, "site": dict[str, Any]}
_OF_SITE: Keys = dict.fromkeys((*_SITE, *_RUN), Any)


@checking_arguments()
def save(report: Report, folder: str | os.PathLike[str]) -> Path:
    """Write what ``apply`` needs: ``surgery.json`` (sites, specs, the model's shapes) and the new parts' weights.

    Weights that were there before are not saved: they are the model's own.

    Returns:
        The folder, which is made if it is not there.

    Raises:
        ImportError: without safetensors, with the extra that has it.
        ValueError: for a report whose replacements are not in the model (restored, or a dry run), or a folder with
            files that are not ours (see `matmix.folders`).
    """
    out = [row.site.name for row in report.rows if not row.change.done]
    if out:
        raise ValueError(f"the report's replacements are not in the model: {', '.join(out)}")
    from_torch = _safetensors().save_file
    target = Path(folder)
    claim(target, KIND, _is_surgery, "folder")
    weights = {
        f"{row.site.name}:{name}": tensor.detach().cpu().contiguous().clone()
        for row in report.rows
        for name, tensor in _fresh(row).items()
    }
    words = {
        "format": FORMAT,
        "init": report.init,
        "model": report.interface,
        "sites": [_words(row) for row in report.rows],
    }
    from_torch(weights, target / WEIGHTS)
    (target / WORDS).write_text(json.dumps(words, indent=1) + "\n")
    seal(target, KIND, (WORDS, WEIGHTS))
    return target


@checking_arguments()
def apply(model: nn.Module, folder: str | os.PathLike[str]) -> Report:
    """Replace in a fresh model what a saved report replaced, with the saved weights, strictly.

    Raises:
        FileNotFoundError: for a folder that holds no surgery.
        ValueError: for a model that is another than that of the report; the message names the first difference, and
            the model is as it was. For a file that is damaged, by its checksum too.
    """
    refuse_wrappers(model)
    source = Path(folder)
    if not (source / WORDS).is_file():
        raise FileNotFoundError(f"{source} holds no {WORDS}: it must be a folder of surgery.save")
    check_sealed(source, KIND, "a surgery as it was saved")
    words = read_json(source / WORDS, "a surgery", {"format": Any})
    if words["format"] != FORMAT:
        raise ValueError(f"{source / WORDS} has the format {words['format']!r}, this version reads {FORMAT}")
    shaped(words, _KEYS, source / WORDS, "a surgery")
    for number, one in enumerate(words["sites"], 1):
        row = shaped(one, _ROW, source / WORDS, f"site {number} of a surgery")
        shaped(row["site"], _OF_SITE, source / WORDS, f"site {number} of a surgery")
    try:
        weights = _safetensors().load_file(source / WEIGHTS)
    except Exception as error:  # of safetensors: its own class, which derives from no other
        raise Damaged(source / WEIGHTS, "weights of a surgery", str(error)) from None
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    _same_model(words["model"], shapes)
    found = {one.site.name: one for one in discover(model)}
    rows = [_row(model, saved, found, weights) for saved in words["sites"]]
    if weights:
        raise ValueError(f"{source / WEIGHTS} holds weights that no site takes: {', '.join(sorted(weights))}")
    report = Report(model, rows, init=words["init"], interface=shapes)
    commit(report)
    return report


def _is_surgery(folder: Path) -> bool:
    """Whether nothing stands in a folder without a marker but what `save` writes: it was made before there were any."""
    return names_in(folder) == {WORDS, WEIGHTS}


def _words(row: Row) -> dict[str, Any]:
    site = {name: getattr(row.site, name) for name in (*_SITE, *_RUN)}
    return {
        "name": row.site.name,
        "tied": row.site.tied,
        "level": row.level,
        "spec": row.spec,
        "seed": row.seed,
        "old": row.old_class,
        "new": row.new_class,
        "site": site,
    }


def _row(model: nn.Module, saved: dict[str, Any], found: dict[str, Found], weights: dict[str, Tensor]) -> Row:
    """One site rebuilt as it was saved; its weights are taken out of those given."""
    from dataclasses import replace

    name = saved["name"]
    if name not in found:
        raise ValueError(f"the model has no site {name!r}; it has {', '.join(found) or 'none'}")
    one = found[name]
    for word in _SITE:
        was, now = saved["site"][word], getattr(one.site, word)
        if was != (list(now) if isinstance(now, tuple) else now):
            raise ValueError(f"{name}: {word} is {now!r} here and was {was!r} in the model of the report")
    told = {word: _tuple(saved["site"][word]) for word in _RUN}
    row = plan(model, one._replace(site=replace(one.site, **told)), saved["spec"], saved["level"], saved["seed"])
    own = _fresh(row)
    given = {key: weights.pop(f"{name}:{key}") for key in list(own) if f"{name}:{key}" in weights}
    missing = [key for key in own if key not in given]
    if missing:
        raise ValueError(f"{name}: no weights were saved for {', '.join(missing)}")
    for key, tensor in own.items():
        if tensor.shape != given[key].shape:
            raise ValueError(f"{name}: {key} is {tuple(tensor.shape)} here, {tuple(given[key].shape)} was saved")
    row.part.load_state_dict(given, strict=False)  # what it keeps of the old module is the model's own
    return row


def _fresh(row: Row) -> dict[str, Tensor]:
    """The state of what is new, without parts of the old module that it keeps."""
    old = {id(tensor) for tensor in row.old.state_dict(keep_vars=True).values()} if row.level == "module" else set()
    return {name: t for name, t in row.part.state_dict(keep_vars=True).items() if id(t) not in old}


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _same_model(saved: Mapping[str, list[int]], here: Mapping[str, list[int]]) -> None:
    """Refuse a model of other parameters, naming the first that differs."""
    for name, shape in saved.items():
        if name not in here:
            raise ValueError(f"another model: it has no parameter {name!r}, {tuple(shape)} in the model of the report")
        if here[name] != shape:
            now, was = tuple(here[name]), tuple(shape)
            raise ValueError(f"another model: {name} is {now} here and was {was} in the model of the report")
    more = next((name for name in here if name not in saved), None)
    if more is not None:
        raise ValueError(f"another model: its parameter {more!r} is not in the model of the report")


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("saved surgery needs safetensors: pip install 'matmix[experiments]'") from error
    return safetensors.torch
