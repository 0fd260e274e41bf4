"""Bad calls to image models: their options, their images, and what a script does with a model besides."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import vision
from tests.campaigns.odd import Call, bent, short, thing
from tests.vision.families import FAMILIES, SIZE, small

BATCH, CLASSES = 2, 5
TOGETHER = ("depths", "dims", "mixers", "channel_mixers", "img_size", "patch", "stages", "grid", "kernel", "in_chans",
            "num_classes", "expand", "stem_dim")  # fmt: skip
"""Options that must fit each other: an error may name the other one."""
TIMMS = ("features_only", "out_indices", "feature_cls")
PLACES = ("features_only", "out_indices", "indices")


@cache
def model_at(name: str) -> nn.Module:
    return small(name).eval()


def calls(seed: int) -> Iterator[Call]:
    """Endless; every family and every kind of call in turn."""
    draw = random.Random(seed)
    kinds = (_build, _build, _image, _image, _image, _method, _method, _dense, _create)
    while True:
        for name in draw.sample(sorted(FAMILIES), len(FAMILIES)):
            yield draw.choice(kinds)(draw, name)


def _on_meta(make: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.device("meta"):
            return make()

    return run


def _is_model(result: Any) -> str:
    return "" if isinstance(result, nn.Module) else "no model"


def _sequence(draw: random.Random, value: Any) -> Any:
    """What stands for each stage, changed in one place or in its length."""
    if isinstance(value, tuple) and value and draw.random() < 0.6:
        place, other = draw.randrange(len(value)), thing(draw)
        return draw.choice((value[:-1], (*value, value[-1]), (*value[:place], other, *value[place + 1 :]), list(value)))
    if isinstance(value, str) and draw.random() < 0.6:
        return draw.choice(("attention(", "no_mixer", ", ".join(["attention"] * 6),
                            "hydra(d_state=0)", "pooling(stride=3)", [thing(draw)], (value, thing(draw))))  # fmt: skip
    return thing(draw)


def _build(draw: random.Random, name: str) -> Call:
    info = vision.model_info(name)
    option = draw.choice((*info.options, *TIMMS, "width"))
    default = inspect.signature(info.cls).parameters.get(option)
    value = _sequence(draw, {**info.defaults, **FAMILIES[name]}.get(option, default and default.default))
    names = (option, *(TOGETHER if option in TOGETHER or "mixers" in option else PLACES if option in TIMMS else ()))
    names = (*names, "norm") if option.endswith("_norm") else names
    plain = option not in TOGETHER and "mixers" not in option and option not in (*TIMMS, "width")
    return Call(
        f"{name}.build({option}={short(value)})",
        _on_meta(lambda: small(name, **{option: value})),
        names if plain or option in TIMMS else (),
        (value,) if plain else (),
        _is_model,
    )


def _create(draw: random.Random, name: str) -> Call:
    """Names of models that are none."""
    value = draw.choice((thing(draw), name.upper(), name[:-1], f"{name}.none", f"{name}()"))
    return Call(f"create_model({short(value)})", _on_meta(lambda: vision.create_model(value)), ("model", "name", "tag"),
                (value, "none"), _is_model)  # fmt: skip


def _image(draw: random.Random, name: str) -> Call:
    """Images that are none."""
    model = model_at(name)
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    wrong = bent(draw, images)
    if draw.random() < 0.4:
        sizes = draw.choice(((1, 1), (SIZE, 3), (SIZE + 5, SIZE), (2 * SIZE, 2 * SIZE), (0, SIZE), (7, 7), (16, 16)))
        wrong = torch.randn(draw.choice((0, 1, BATCH)), draw.choice((3, 3, 3, 1, 4)), *sizes)
    method = draw.choice(("forward", "forward_features", "forward_intermediates"))
    floats = isinstance(wrong, Tensor) and not wrong.is_nested and wrong.is_floating_point() and wrong.dim() == 4

    def run() -> Any:
        with torch.no_grad():
            return (model if method == "forward" else getattr(model, method))(wrong)

    def right(result: Any) -> str:
        out = result[0] if isinstance(result, tuple) else result
        if len(out) != len(wrong) or (method == "forward" and out.shape != (len(wrong), CLASSES)):
            return "an output of another shape"
        return "" if out.is_meta or out.isfinite().all() else "an output that is not finite"

    values = (wrong, *(_sides(wrong) if floats else ()))
    return Call(f"{name}.{method}({short(wrong)})", run, ("image", "images", "img_size", "x", "grid"), values,
                right if floats else None)  # fmt: skip


def _sides(image: Tensor) -> tuple[str, ...]:
    """An error may speak of the image's size, or of a map that is made of it."""
    height, width = image.shape[2:]
    return (f"{height}", f"{width}", "image")


def _method(draw: random.Random, name: str) -> Call:
    """What scripts call besides a forward."""
    word = draw.choice(("resize_", "set_input_size", "reset_classifier", "global_pool", "indices", "output_fmt",
                        "stage_grids", "forward_head", "load_state_dict"))  # fmt: skip
    value = thing(draw)
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    names: tuple[str, ...] = (word,)
    if word in ("resize_", "set_input_size", "stage_grids"):
        value = draw.choice((value, (SIZE,), (SIZE, 0), (SIZE, "x"), [SIZE, SIZE, SIZE], (-1, SIZE), 3, (True, SIZE)))
        names = ("img_size", "grid")
        run = lambda: getattr(small(name), word)(value)
    elif word == "reset_classifier":
        names = ("num_classes",)
        run = lambda: small(name).reset_classifier(value)
    elif word == "global_pool":
        run = lambda: small(name).reset_classifier(CLASSES, value)
    elif word == "forward_head":
        with torch.no_grad():
            value = bent(draw, model_at(name).forward_features(images))
        names = ("x", "map")
        run = lambda: model_at(name).forward_head(value)
    elif word == "load_state_dict":
        value = nn.Linear(2, 2) if isinstance(value, dict) else value  # of names alone PyTorch speaks
        names = ("state_dict", "state", "weights")
        run = lambda: small(name).load_state_dict(value)
    else:
        value = draw.choice((value, (9,), [-9], (0, 0), "NCWH", "all", (0.5,), (None,))) if value is not None else "x"
        run = lambda: model_at(name).forward_intermediates(images, **{word: value})

    def no_grad() -> Any:
        with torch.no_grad():
            return run()

    return Call(f"{name}.{word}({short(value)})", no_grad, names, (value, "image"), lambda result: "")


def _dense(draw: random.Random, name: str) -> Call:
    """Models for detection and segmentation around a backbone."""
    make = draw.choice((vision.semantic_fpn, vision.retinanet, vision.mask_rcnn))
    given: dict[str, Any] = {"num_classes": CLASSES, "width": 16, "img_size": SIZE}
    option = draw.choice(("model", *given, "drop_rate" if make is vision.semantic_fpn else "detections_per_img"))
    value = draw.choice((thing(draw), nn.Linear(2, 2))) if option == "model" else thing(draw)

    def run() -> Any:
        with torch.device("meta"):
            model = value if option == "model" else small(name)
            return make(model, **{**given, **({option: value} if option != "model" else {})})

    values = (value, type(value).__name__)
    return Call(f"{name}.{make.__name__}({option}={short(value)})", run, (option,), values, _is_model)
