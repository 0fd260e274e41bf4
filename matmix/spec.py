"""Specs, the strings that name a mixer or a model with its options, and what is said of a word that nobody knows.

A spec is Python call syntax, read with ``ast`` and never evaluated::

    hydra                                   a name with its defaults
    hydra(expand=1, d_state=32)             with options
    heads("attention", "ssd")               with positional arguments
    ssd*3, attention                        several, one a layer

Of matmix this module imports only how errors show a value, so that mixers, models, tasks and the command line all read
specs and word their errors by it.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matmix.ranges import shown

CLOSE = 0.6
"""How alike two words are at least, from 0 to 1 as difflib counts, for one to be offered in place of the other."""
NAMED = 60
"""How many known words an error lists at most: all mixers, but not the 1,500 models of timm."""
LONGEST = 100_000
"""Characters that a spec has at most: Python's parser takes some 100 bytes of memory for each."""
LAYERS = 10_000
"""Layers that a spec may name, after `* count` is written out."""

RENAMED: dict[str, tuple[str, ...]] = {
    "D_has_hdim": ("D_per_channel",),
    "activation": ("act",),
    "attention_heads": ("heads",),
    "bidirectional": ("causal",),
    "blocks": ("groups",),
    "chunk": ("block",),
    "conv_size": ("d_conv",),
    "expand": ("mlp_ratio",),
    "expansion": ("expand", "bottleneck", "mlp_ratio"),
    "gate": ("out_gate",),
    "hdim": ("hidden",),
    "headdim": ("head_dim",),
    "hidden": ("mlp_ratio",),
    "max_positions": ("max_len",),
    "n_ssm": ("groups",),
    "ngroups": ("groups",),
    "norm": ("out_norm",),
    "norm_eps": ("eps",),
    "output_gate": ("out_gate",),
    "ratio": ("mlp_ratio",),
    "rmsnorm": ("out_norm",),
    "states": ("d_state",),
    "z_dim": ("qk_dim",),
}
"""Words of published code, or of this project before, and the word that stands for their idea here. Where a word stood
for several ideas, the first one that the owner of the option knows is meant."""
OPPOSITE = frozenset({"bidirectional"})
"""Renamed switches that were turned round: what was True is False now."""


def close_names(word: str, known: Iterable[str]) -> list[str]:
    """The at most three known words that ``word`` may be a slip of, the closest first; upper and lower case are one."""
    folded: dict[str, list[str]] = {}
    for name in known:
        folded.setdefault(name.casefold(), []).append(name)
    found = difflib.get_close_matches(word.casefold(), folded, n=3, cutoff=CLOSE)
    return [name for key in found for name in folded[key]][:3]


def hint(word: str, known: Iterable[str]) -> str:
    """What an error says after an unknown word: ``"; did you mean a, b?"``, or ``"; known: a, b, c"`` if none is close.

    Known words are listed in the order given, at most 60 of them.
    """
    known = list(known)
    close = close_names(word, known) if isinstance(word, str) else []
    if close:
        return f"; did you mean {', '.join(close)}?"
    if not known:
        return "; there is none"
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return f"; known: {', '.join(known[:NAMED])}{more}"


def unknown_option(owner: str, option: str, known: Iterable[str], kind: str = "option") -> str:
    """The error for an option that ``owner`` does not have.

    Args:
        owner: whose option it would be, such as ``"hydra"``.
        option: the word that was given.
        known: the options that the owner has.
        kind: what the owner calls them: option, setting, argument.
    """
    known = list(known)
    for new in RENAMED.get(option, ()):
        if new in known:
            turned = ", where True was False" if option in OPPOSITE else ""
            return f"{owner} has no {kind} {option!r}: {option} is called {new} here{turned}"
    return f"{owner} has no {kind} {shown(option)}{hint(option, known)}"


def place(named: Any) -> tuple[str, str]:
    """Where a class or function stands: its name, and its file or module. Two with one name are the same where these
    are: a file may be imported twice, a cell of a notebook run again."""
    module = sys.modules.get(named.__module__)
    return named.__qualname__, getattr(module, "__file__", None) or named.__module__


@dataclass(frozen=True)
class Spec:
    """One call of a spec string, read but not built; ``str`` writes it so that it reads the same."""

    name: str
    args: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        inner = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.options]
        return f"{self.name}({', '.join(inner)})" if inner else self.name


def parse_spec(spec: str) -> list[Spec]:
    """Read a spec string into calls, ``"ssd*2, attention"`` into three.

    Raises:
        ValueError: for anything but names, calls with literal arguments, ``* count`` and commas.
    """
    if not isinstance(spec, str) or not spec.strip():
        raise ValueError(f"spec must be a non-empty string such as 'hydra(expand=2)', got {shown(spec)}")
    if len(spec) > LONGEST:
        raise ValueError(f"spec {shown(spec)} must have at most {LONGEST:,} characters, got {len(spec):,}")
    try:
        body = ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:  # a ValueError for null bytes and halves of surrogate pairs
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"spec {shown(spec)} is not Python call syntax: {reason}") from None
    except (RecursionError, MemoryError):  # what the parser says of a few hundred brackets in each other
        raise ValueError(
            f"spec {shown(spec)} is nested too deeply to be read: at most some dozens of brackets"
        ) from None
    calls: list[Spec] = []
    try:
        for item in body.elts if isinstance(body, ast.Tuple) else [body]:
            calls += _read(item, spec, LAYERS - len(calls))
    except RecursionError:
        raise ValueError(
            f"spec {shown(spec)} is nested too deeply to be read: at most some dozens of brackets"
        ) from None
    if not calls:
        raise ValueError(f"spec {shown(spec)} names nothing: write a name such as 'hydra(expand=2)'")
    return calls


def _read(node: ast.expr, spec: str, room: int) -> list[Spec]:
    """The calls of one item of a spec, at most ``room`` of them."""
    if isinstance(node, ast.Name):
        found = [Spec(node.id)]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        count = node.right.value if isinstance(node.right, ast.Constant) else None
        if type(count) is not int or count < 1:
            raise ValueError(f"spec {shown(spec)}: the count after * must be a positive integer")
        found = _read(node.left, spec, room)
        if count * len(found) <= room:
            return found * count
        room = 0
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        names = [k.arg for k in node.keywords if k.arg is not None]
        if len(names) < len(node.keywords):
            raise ValueError(f"spec {shown(spec)}: options are given by name, not by **")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"spec {shown(spec)}: {node.func.id} is given {twice} twice; name an option at most once")
        try:
            args = tuple(ast.literal_eval(arg) for arg in node.args)
            options = tuple(zip(names, (ast.literal_eval(k.value) for k in node.keywords), strict=True))
        except (ValueError, TypeError):  # a TypeError for a set or a key that cannot be hashed
            raise ValueError(f"spec {shown(spec)}: arguments must be literals (numbers, strings, tuples)") from None
        found = [Spec(node.func.id, args, options)]
    else:
        at = shown(ast.unparse(node))
        raise ValueError(f"spec {shown(spec)}: expected a name, a call, * count or a comma at {at}")
    if room < 1:
        raise ValueError(f"spec {shown(spec)} must name at most {LAYERS:,} layers")
    return found


def layer_specs(spec: str, depth: int) -> list[Spec]:
    """The spec of each of ``depth`` layers; the pattern repeats.

    Raises:
        ValueError: for a depth that is no number of layers, or if the pattern's length does not divide it.
    """
    calls = parse_spec(spec)
    if type(depth) is not int or not 1 <= depth <= LAYERS:
        raise ValueError(f"depth must be a whole number from 1 to {LAYERS:,}, got {shown(depth)}")
    if depth % len(calls):
        raise ValueError(f"spec {shown(spec)} is a pattern of {len(calls)} layers, which does not divide depth={depth}")
    return calls * (depth // len(calls))
