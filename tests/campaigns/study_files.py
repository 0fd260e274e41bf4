"""Damaged study files: right ones in JSON and TOML with a value of another kind, a key away or more, a letter wrong or
in another encoding. What is taken must stand in the study as it stands in the file."""

from __future__ import annotations

import copy
import datetime
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matmix.experiments.study import Study, load_study
from tests.campaigns.damage import ODD, bent_text
from tests.campaigns.odd import Call, short

GOOD: tuple[dict[str, Any], ...] = (
    {"name": "grid", "tasks": ["digits"], "mixers": ["identity", "pooling"]},
    {
        "name": "whole", "mixers": ["identity", "hydra(expand=1)"], "seeds": [0, 1], "reference": "identity",
        "margin": 0.01, "threads": 1, "note": "what for?", "imports": [],
        "recipes": {"slow": {"lr": 1e-4}, "fast": {"lr": 1e-3, "betas": [0.8, 0.9]}},
        "tuning": {"a": {"weight_decay": 0.0}, "b": {"weight_decay": 0.1}},
        "tasks": [
            {
                "task": "digits", "options": {"dim": 8, "depth": 1}, "recipe": {"steps": 2, "batch_size": 8},
                "label": "d", "specs": {"identity": "identity"}, "model": "m", "data": "images",
                "arms": [{"name": "bag", "mixer": "identity", "options": {"position": False}, "recipe": {"lr": 0.1},
                          "window": 3}],
                "surgery": {"level": "module", "where": ["all"], "base": "pooling", "distill": 1},
            },
            {"task": "recall", "options": {"length": 16, "pairs": 2}},
        ],
    },
)  # fmt: skip
DATE = datetime.date(2024, 1, 2)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2.5, -0.5, float("nan"), float("inf"), 1e300, 10**30, -(10**30), "", "x",
    "identity", [], [[]], {}, [1], [1, "a"], ["a", None], {"a": 1}, {"": {}}, [{"name": "x"}], [[[[1]]]],
    {"a": {"b": [1]}}, DATE, datetime.time(1, 2), datetime.datetime(2024, 1, 2, 3, 4), [DATE], *ODD,
)  # fmt: skip
NAMES = ("study", "expected", "line", "mixer", "spec", "Recipe", "Surgery", "StudyTask", "StudyArm", "Digits", "Recall",
         "name", "names", "task", "import")  # fmt: skip
"""A message may name the table or the file instead of a key; files are called study.json and study.toml."""


def calls(seed: int, folder: Path) -> Iterator[Call]:
    """Endless; each writes its file into the folder, and reads it."""
    draw = random.Random(seed)
    while True:
        yield _call(draw, folder)


def _call(draw: random.Random, folder: Path) -> Call:
    data, ending = copy.deepcopy(draw.choice(GOOD)), draw.choice(("json", "toml"))
    way = draw.randrange(10)
    near = _damage(draw, data) if way < 7 else set()
    text = json.dumps(data, default=str) if ending == "json" else _toml(data)
    if ending == "json" and draw.random() < 0.02:
        text = draw.choice(("[" * 100_000, "null", "[]", "3", "NaN", '"x"', "{}", "[{}]", text + text))
    if way in (7, 8):
        for _ in range(draw.choice((1, 1, 3))):
            text = bent_text(draw, text)
    content = text.replace(str(10**30), "9" * draw.choice((31, 5000))).encode(errors="surrogatepass")
    if way == 9:
        content = draw.choice((
            text.encode("utf-16"), text.encode("utf-8-sig"), text.encode("utf-32"), b"\xff" + content, content + b"\0",
            content[: draw.randrange(len(content))], content.replace(b"d", b"\xe9", 1), b"", b"\n",
        ))  # fmt: skip
    path = folder / f"study.{ending}"

    def run() -> Study:
        path.write_bytes(content)
        study = load_study(str(path))
        study.runs()
        return study

    told = {word for key in near for word in (key, repr(key)[1:-1][:40])} - {""}
    shown = (
        f"load_study(.{ending}: way {way}, at {sorted(map(short, near))}, {short(text)[:50]} ... {short(text[-80:])})"
    )
    return Call(shown, run, (*NAMES, *sorted(told)), (), lambda study: _kept(data if way < 7 else {}, study))


def _damage(draw: random.Random, data: Any) -> set[str]:
    """Change one place, and return the keys on the way to it."""
    near: set[str] = set()
    while True:
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        key = draw.choice(keys)
        near.add(str(key))
        if isinstance(data[key], dict | list) and data[key] and draw.random() < 0.75:
            data = data[key]
            continue
        break
    way = draw.randrange(6)
    if way == 0:
        del data[key]
    elif way == 1 and isinstance(data, dict):
        other = draw.choice((*ODD, bent_text(draw, str(key)), str(key).upper()))
        data[other] = data.pop(key) if draw.random() < 0.5 else draw.choice(VALUES)
        near.add(other)
    elif way == 2 and isinstance(data, list):
        data.append(draw.choice((data[key], draw.choice(VALUES))))
    else:
        data[key] = draw.choice(VALUES)
    near |= {data[key]} if isinstance(data, dict) and isinstance(data.get(key), str) else set()
    return near


def _kept(data: dict[str, Any], study: Study) -> str:
    """What of the file the study has turned into something else."""
    plain = json.loads(json.dumps(study.to_json()))
    for key, value in json.loads(json.dumps(data, default=str)).items():
        if key == "tasks":
            pairs = [
                (f"tasks.{name}", one, mine[name])
                for task, mine in zip(value, plain[key], strict=True)
                if isinstance(task, dict)
                for name, one in task.items()
                if name not in ("task", "arms")
            ]
        else:
            pairs = [(key, value, plain[key])] if key != "imports" else []
        for where, given, taken in pairs:
            if json.dumps(given) != json.dumps(taken):
                return f"turned into another value: {where}: {given!r:.40} became {taken!r:.40}"
    return ""


def _toml(data: dict[str, Any]) -> str:
    """The data as TOML, tables within one line; None, which TOML has not, as a word that is none."""
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in data.items())


def _key(key: str) -> str:
    return json.dumps(key, ensure_ascii=False).replace("\x7f", "")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float):
        return repr(value)
    return "null" if value is None else json.dumps(value, ensure_ascii=False)
