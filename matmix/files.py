"""Files that a disk, a person or another program may have spoiled: read in one way, with one error.

What is absent raises FileNotFoundError, which is no damage: it was not written yet.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

T = TypeVar("T")
Keys = dict[str, Any]
"""What an object of JSON must have: names, and the type of each; further names are not looked at."""


class Damaged(ValueError):
    """A file that is not what it should be: the message names it, the line where there is one, and what was expected.

    A file of somebody else under a name of ours is damaged in this sense, too.
    """

    def __init__(self, path: Path | str, what: str, reason: str, line: int = 0) -> None:
        self.path = Path(path)
        where = f"{path}, line {line}" if line else f"{path}"
        super().__init__(f"{where}: expected {what}, but {reason}")


def read_json(path: Path, what: str, keys: Keys | None = None) -> Any:
    """The data in a JSON file.

    Args:
        path: of the file.
        what: it should hold, in words for the error.
        keys: what an object must have; None takes any data.

    Raises:
        Damaged: if it cannot be read, is no JSON, or lacks a key or has one of another type.
        FileNotFoundError: if there is none.
    """
    data = _parse(_bytes(path, what), path, what)
    return data if keys is None else shaped(data, keys, path, what)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The data in a TOML file.

    Raises:
        Damaged: if it cannot be read, or is no TOML.
        FileNotFoundError: if there is none.
    """
    import tomllib

    data = _bytes(path, what)
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # as of JSON
        raise Damaged(path, what, f"it is no TOML: {error}") from None


def read_lines(path: Path, what: str, keys: Keys) -> list[dict[str, Any]]:
    """The objects of a file with one a line. A last line without its end is left out: its writer was killed.

    Raises:
        Damaged: as `read_json`; the message has the number of the line.
        FileNotFoundError: if there is none.
    """
    *whole, _torn = _bytes(path, what).split(b"\n")
    return [
        shaped(_parse(line, path, what, number), keys, path, what, number) for number, line in enumerate(whole, start=1)
    ]


def read_arrays(path: Path, what: str) -> dict[str, np.ndarray]:
    """The arrays of a file of numpy: those of an .npz by name, that of an .npy under "". Objects are not read.

    Raises:
        Damaged: if it cannot be read as either.
        FileNotFoundError: if there is none.
    """
    head = _bytes(path, what, 6)
    if not head.startswith((b"PK", b"\x93NUMPY")):  # numpy would take it for a pickle, and advise to load it as one
        raise Damaged(path, what, "it is no file of arrays as numpy saves them, .npz or .npy")
    try:
        found = np.load(path, allow_pickle=False)
        return {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except Exception as error:  # readers of headers, of zip archives and of packed bytes raise what they like
        reason = "it holds objects, and arrays alone are read" if "allow_pickle" in str(error) else str(error)
        raise Damaged(path, what, f"it cannot be read: {(reason.splitlines() or ['it is cut short'])[0]}") from None


def shaped(data: Any, keys: Keys, path: Path, what: str, line: int = 0) -> dict[str, Any]:
    """The data, if it is an object with these keys.

    Raises:
        Damaged: if it is not.
    """
    if not isinstance(data, dict):
        raise Damaged(path, what, f"it holds {_short(data)}", line)
    for name, hint in keys.items():
        if name not in data:
            raise Damaged(path, what, f"it has no {name!r}", line)
        if not fits(data[name], hint):
            raise Damaged(path, what, f"its {name!r} must be {_words(hint)}, got {_short(data[name])}", line)
    return data


def record(cls: type[T], data: Any, path: Path, what: str) -> T:
    """A dataclass from JSON: each field of its type, those without a default present, no other.

    Raises:
        Damaged: if the data are not of its shape.
    """
    kind: Any = cls
    needed, hints = _fields(kind)
    found = shaped(data, {name: hints[name] for name in (*needed, *(data if isinstance(data, dict) else ()))
                          if name in hints}, path, what)  # fmt: skip
    unknown = sorted(found.keys() - hints.keys())
    if unknown:
        raise Damaged(path, what, f"it has {unknown[0]!r}, which this version of matmix does not know")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


@cache
def _fields(cls: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of the fields that have no default, and the types of all."""
    absent = dataclasses.MISSING
    needed = (f.name for f in dataclasses.fields(cls) if f.default is absent and f.default_factory is absent)
    return tuple(needed), get_type_hints(cls)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of an annotated type; a tuple is a list there, and a whole number a float, too."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is dict:
        return isinstance(value, dict) and all(not inner or fits(item, inner[1]) for item in value.values())
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(not inner or fits(item, inner[0]) for item in value)
    if origin is float:
        origin = (int, float)
    return isinstance(value, bool) == (origin is bool) and isinstance(value, origin)


def _bytes(path: Path, what: str, most: int = -1) -> bytes:
    try:
        if not path.exists():
            raise FileNotFoundError(2, "No such file or directory", str(path))
        if not path.is_file():  # a pipe would be waited for
            raise Damaged(path, what, "it is no file")
        with path.open("rb") as file:
            return file.read(most)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(path, what, f"it cannot be read: {error.strerror or error}") from None


def _parse(data: bytes, path: Path, what: str, line: int = 0) -> Any:
    try:
        found = json.loads(data)
        return _whole(found) if re.search(rb"\\u[dD]", data) else found
    except json.JSONDecodeError as error:
        raise Damaged(path, what, f"it is no JSON: {error.msg}", line or error.lineno) from None
    except (ValueError, RecursionError) as error:  # no UTF-8, numbers of thousands of digits, thousands of brackets
        raise Damaged(path, what, f"it is no JSON: {error}", line) from None


def _whole(value: Any) -> Any:
    """Data whose text has no half of a character, as names of files in an error may have: no page can be written of it,
    no table made."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(one) for one in inner)
    if origin is dict:
        return f"an object{f' of {_words(inner[1])} each' if inner and inner[1] is not Any else ''}"
    if origin in (list, tuple):
        return f"a list{f' of {_words(inner[0])} each' if inner and inner[0] is not Any else ''}"
    known = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return known.get(origin, str(origin))
