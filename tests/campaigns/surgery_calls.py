"""Bad calls to surgery, cost, projection and recording: models, words, batches and numbers that are none."""

from __future__ import annotations

import copy
import inspect
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import matmix
from matmix import cost, surgery
from matmix.inspect import describe, gallery, matrices, rank_pattern, record, show
from matmix.projection import list_projections, project, projection_info
from sequence.encoder import Encoder
from tests.campaigns.odd import Call, bent, short, thing

BATCH, LENGTH, DIM = 2, 6, 8
PICTURE = f"{tempfile.gettempdir()}/matmix-campaign.png"
WORDS = (
    "attn",
    "blocks.9",
    "blocks.*.mixr",
    "self_attention",
    "",
    "[",
    "mixer",
    "all",
    "none",
    ("blocks.0.mixer", "x"),
)
SPECS = ("hydra(d_state=4)", "attention(heads=3)", "no_mixer", "attention(", "attention, attention", "low_rank(2)",
         {"blocks.0.mixer": "fnet"}, {"blocks.9": "fnet"}, {"all": 3}, {}, "toeplitz", "mean_matrix")  # fmt: skip
NOTHING: Callable[[Any], str] = lambda result: ""


def calls(seed: int) -> Iterator[Call]:
    """Endless; every kind of call in turn."""
    draw = random.Random(seed)
    kinds = (_find, _replace, _replace, _ablate, _distill, _explain, _stored, _project, _project, _measure, _measure,
             _count, _count, _record, _draw, _train)  # fmt: skip
    while True:
        for kind in draw.sample(kinds, len(kinds)):
            yield kind(draw)


@cache
def _made(mixer: str = "attention(heads=2)") -> Encoder:
    return Encoder(lambda: nn.Linear(3, DIM), mixer, dim=DIM, depth=2, grid=(LENGTH,), head="token", outputs=4).eval()


def _model() -> Any:
    return copy.deepcopy(_made())


def _no_model(draw: random.Random) -> Any:
    return draw.choice((nn.Linear(3, 2), thing(draw), nn.Module))


def _x() -> Tensor:
    return torch.randn(BATCH, LENGTH, 3)


def _given(draw: random.Random, good: dict[str, Any], wrong: dict[str, tuple[Any, ...]]) -> tuple[str, dict[str, Any]]:
    """Arguments of which one is wrong, and its name."""
    option = draw.choice(sorted(good))
    some = wrong.get(option, ())
    value = draw.choice(some) if some and draw.random() < 0.6 else thing(draw)
    value = _no_model(draw) if option == "model" else value
    free = option in ("where", "exclude") or (option == "inputs" and isinstance(value, type))
    if free and callable(value):  # what it raises is its own
        value = "none"
    return option, {**good, option: value}


def _call(name: str, run: Callable[[], Any], option: str, value: Any, *more: str, free: bool = False) -> Call:
    """``free``: what the words mean is said by another part, such as that of specs."""
    values = () if free else (value, type(value).__name__, *more)
    return Call(f"{name}({option}={short(value)})", run, () if free else (option, *more), values)


_WHERE = ("where", "exclude", "layers")
"""What is left of sites by all three together is said by any of them."""


def _find(draw: random.Random) -> Call:
    good = {"model": _model(), "where": "all", "exclude": None, "layers": None, "example": None}
    option, given = _given(draw, good, {**dict.fromkeys(("where", "exclude"), WORDS), "example": (bent(draw, _x()),),
                                        "layers": (7, [9], -5, "0", slice(9, 12), 2.0, [None])})  # fmt: skip
    value = given[option]
    more = ("model has no site", *(_WHERE if option in _WHERE else ()), "site", "x")
    return _call("find", lambda: len(surgery.find(given.pop("model"), **given)), option, value, *more)


def _replace(draw: random.Random) -> Call:
    good = {
        "model": _model(), "spec": "hydra(d_state=4)", "where": "all", "level": "module", "init": "fresh",
        "seed": 0, "optimizer": None, "example": None, "batches": None, "prefix": "joined", "keep_causal": True,
        "exclude": None, "layers": None, "dry_run": False,
    }  # fmt: skip
    option, given = _given(draw, good, {**dict.fromkeys(("where", "exclude"), WORDS), "spec": SPECS,
                                        "example": (bent(draw, _x()),), "level": ("matrix", "modul"),
                                        "init": ("projected",), "seed": (-1, 2**70),
                                        "batches": ([], [bent(draw, _x())], "x")})  # fmt: skip
    if given["batches"] is not None:
        given["spec"] = "mean_matrix"
    value = given[option]
    more = ("model has no site", "site", "x", "where", "level", *(_WHERE if option in _WHERE else ()), "mixer")
    free = option in ("spec", "level") or given["spec"] == "mean_matrix"
    return _call("replace", lambda: str(surgery.replace(given.pop("model"), **given)), option, value, *more, free=free)


def _ablate(draw: random.Random) -> Call:
    good = {"model": _model(), "where": "all", "how": "zero", "batches": None, "seed": 0, "exclude": None,
            "layers": None}  # fmt: skip
    option, given = _given(draw, good, {**dict.fromkeys(("where", "exclude"), WORDS), "how": ("mean", "zeros"),
                                        "batches": ([], [bent(draw, _x())]), "seed": (-1, 2.5)})  # fmt: skip
    if given["batches"] is not None:
        given["how"] = "mean"
    if option == "seed":
        given["how"] = "shuffle_rows"
    value = given[option]

    def run() -> Any:
        with torch.no_grad(), surgery.ablate(given.pop("model"), **given):
            return _made()(_x())

    return _call("ablate", run, option, value, *_WHERE, "how", "model", "site", "x", "batch")


def _distill(draw: random.Random) -> Call:
    stage = surgery.Stage(1)
    good = {
        "teacher": copy.deepcopy(_made()), "student": None, "batches": [_x()],
        "recipe": surgery.DistillRecipe(matrices=None, outputs=stage, predictions=stage), "where": "all",
        "inputs": None, "loss": None, "folder": None, "progress": None,
    }  # fmt: skip
    good["student"] = copy.deepcopy(_made("hydra(d_state=4)"))
    surgery.replace(good["student"], "hydra(d_state=4)")
    option, given = _given(draw, good, {"where": WORDS, "batches": ([], [bent(draw, _x())], lambda step: None),
                                        "teacher": (nn.Linear(2, 2), good["student"]), "student": (nn.Linear(3, 8),),
                                        "inputs": (lambda batch: None,), "loss": (lambda a, b, batch: 3.0,),
                                        })  # fmt: skip
    value = given[option]
    return _call("distill", lambda: surgery.distill(**given), option, value, "teacher", "student", "x", "site", "batch",
                 "lambda", "<function", "model", "nothing", "3.0")  # fmt: skip


def _explain(draw: random.Random) -> Call:
    good = {"model": _model(), "batches": [_x()], "where": "blocks.0.mixer", "classes": ("toeplitz",),
            "share": 0.25, "tolerance": 0.05, "samples": 2, "max_heads": 2, "max_tokens": 16,
            "progress": None}  # fmt: skip
    option, given = _given(draw, good, {"where": WORDS, "batches": ([], [bent(draw, _x())], _x()),
                                        "classes": (("no_class",), "toeplitz", (3,), ("low_rank(",), ()),
                                        "max_tokens": (2,), "samples": (1,)})  # fmt: skip
    value = given[option]
    more = ("site", "x", "model", "class", "batch", "low_rank", "no_class", "tokens")
    return _call("explain", lambda: surgery.explain(given.pop("model"), **given), option, value, *more)


def _stored(draw: random.Random) -> Call:
    """save and apply: reports, models and folders that do not fit, files that are damaged."""
    folder = Path(tempfile.mkdtemp())
    model = copy.deepcopy(_made())
    report = surgery.replace(model, "hydra(d_state=4)")
    if draw.random() < 0.4:
        option = draw.choice(("report", "folder"))
        given = {"report": report, "folder": folder, option: thing(draw)}
        if option == "folder" and isinstance(given["folder"], str):
            given["folder"] = folder
        return _call("save", lambda: surgery.save(**given), option, given[option], "name", str(folder))
    surgery.save(report, folder)
    way = draw.choice(("model", "folder", "json", "weights", "other"))
    fresh: Any = copy.deepcopy(_made())
    value: Any = folder
    if way == "model":
        fresh = value = draw.choice((thing(draw), nn.Linear(2, 2), model))
    elif way == "folder":
        value = draw.choice((thing(draw), folder / "none", folder / "surgery.json"))
    else:
        file = folder / ("surgery.safetensors" if way == "weights" else "surgery.json")
        damage(draw, file)
    named = value if way == "folder" else folder
    return _call("apply", lambda: surgery.apply(fresh, named), way, value, "model", str(folder), "surgery", "folder")


def damage(draw: random.Random, file: Path) -> None:
    """Change the bytes of a file."""
    data = bytearray(file.read_bytes())
    way = draw.randrange(6)
    if way == 0:
        data = data[: draw.randrange(len(data))] if data else data
    elif way == 1:
        data = bytearray(draw.choice((b"", b"\0" * 40, b"{}", b"[]", b"null", b"<html>404</html>", b"\xff\xfe" * 9)))
    elif way == 2:
        for _ in range(draw.choice((1, 4, 40))):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif way == 3:
        place = draw.randrange(len(data))
        data[place:place] = draw.choice((b"\n", b"\0", b",", b"\t", b'"', b"\xc3", b"9", b"nan"))
    elif way == 4:
        place = draw.randrange(len(data))
        del data[place : place + draw.choice((1, 7, 100))]
    else:
        data = data + data[: draw.choice((1, 9, len(data)))]
    file.write_bytes(bytes(data))


def _project(draw: random.Random) -> Call:
    matrix = torch.randn(2, LENGTH, LENGTH)[None]
    name = draw.choice(list_projections())
    spec = draw.choice(projection_info(name).specs((LENGTH,)))
    option = draw.choice(("matrix", "matrix", "spec", "grid", "options"))
    given: dict[str, Any] = {"matrix": matrix, "spec": spec, "grid": None}
    if option == "matrix":
        given["matrix"] = bent(draw, draw.choice((matrix, matrix[0, 0])))
        if draw.random() < 0.2:
            given["matrix"] = matrix.masked_fill(matrix > 0, draw.choice((float("nan"), float("inf"))))
    elif option == "spec":
        given["spec"] = draw.choice((thing(draw), name[:-1], f"{name}(", f"{name}, {name}", ""))
    elif option == "grid":
        given["grid"] = draw.choice((thing(draw), (2, 4), (LENGTH + 1,), (-2, -3), (2.0, 3), (2, 3, 1)))
    else:
        known = projection_info(name).options or ("none",)
        given["spec"] = value = f"{name}({draw.choice(known)}={draw.choice((0, -1, 99, 2.5, True, None, 'x'))!r})"
    value = given["spec" if option == "options" else option]
    return Call(f"project({short(given['spec'])}, {option}={short(value)})", lambda: repr(project(**given)),
                () if option in ("spec", "options") else (option, "matrices", "square"),
                () if option in ("spec", "options") else (value, "square"), NOTHING)  # fmt: skip


def _measure(draw: random.Random) -> Call:
    """describe and rank_pattern."""
    function = draw.choice((describe, rank_pattern))
    matrix = bent(draw, torch.randn(1, 2, LENGTH, LENGTH))
    tolerance = 1e-5
    option, value = "matrix", matrix
    if draw.random() < 0.4:
        option, value = "tolerance", thing(draw)
        matrix, tolerance = torch.randn(1, 2, LENGTH, LENGTH), value
    return Call(f"{function.__name__}({option}={short(value)})", lambda: str(function(matrix, tolerance=tolerance)),
                (option,), (value,), NOTHING)  # fmt: skip


def _count(draw: random.Random) -> Call:
    """What a model costs."""
    function = draw.choice((cost.count, cost.state_bytes, cost.tokens, cost.measure))
    model, x, option = _model(), _x(), draw.choice(("x", "x", "x", "model"))
    if option == "x":
        value = x = bent(draw, x)
    else:
        value = model = _no_model(draw)
    more: dict[str, Any] = {}
    if option == "x" and draw.random() < 0.3:
        option, value, x = "mask", bent(draw, torch.ones(BATCH, LENGTH, dtype=torch.bool)), _x()
        more = {"mask": value}
    return Call(f"{function.__name__}({option}={short(value)})", lambda: function(model, x, **more), (option, "tokens"),
                (value, type(value).__name__, f"{getattr(value, '__name__', '')}"), NOTHING)  # fmt: skip


def _record(draw: random.Random) -> Call:
    model, x, option = _model(), _x(), draw.choice(("x", "x", "x", "model"))
    if option == "x":
        value = x = bent(draw, x)
    else:
        value = model = _no_model(draw)

    def run() -> Any:
        if way == "matrices":
            return matrices(model, x)
        with torch.no_grad(), record(model) as found:
            model(x)
        return found

    way = draw.choice(("matrices", "record"))
    return Call(f"{way}({option}={short(value)})", run, (option, "tokens", "Linear"),
                (value, type(value).__name__, f"{getattr(value, '__name__', '')}"), NOTHING)  # fmt: skip


def _draw(draw: random.Random) -> Call:
    """show and gallery, without a picture that is written: all are refused before, or rarely drawn."""
    good: dict[str, Any] = {"what": matmix.create_mixer("attention(heads=2)", DIM, (LENGTH,)), "path": PICTURE,
                            "x": torch.randn(1, LENGTH, DIM), "heads": None, "max_heads": 8, "sample": 0, "grid": None,
                            "mask": None, "title": None}  # fmt: skip
    option, given = _given(draw, good, {"heads": (9, -3, [0, 7], "0"), "sample": (5, -1), "path": ("a.xyz", ""),
                                        "mask": (bent(draw, torch.ones(1, LENGTH, dtype=torch.bool)),),
                                        "grid": ((2, 2), (0,))})  # fmt: skip
    value = given[option]
    if draw.random() < 0.2:
        option = "specs"
        value = draw.choice((thing(draw), ["no_mixer"], [3], []))
        return _call("gallery", lambda: gallery(value, PICTURE), "path", value, free=True)
    return _call("show", lambda: show(**given), option, value, "a.png", "x", "head", "path", "tokens")


def _train(draw: random.Random) -> Call:
    """What a loop of one's own calls."""
    function = draw.choice((matmix.after_step, matmix.no_weight_decay, matmix.optim_settings))
    value = draw.choice((thing(draw), [nn.Linear(2, 2)], iter(nn.Linear(2, 2).parameters()), nn.Linear))
    word = next(iter(inspect.signature(function).parameters))
    return _call(function.__name__, lambda: function(value), word, value)
