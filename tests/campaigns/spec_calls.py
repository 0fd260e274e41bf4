"""Bad specs: of mixers, of patterns of layers, of models of every package, of series models, and of sites."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn

import matmix
from matmix.adapters import KINDS, Site
from matmix.experiments.models import create_model
from matmix.mixers import create_mixer, create_mixers
from matmix.spec import layer_specs
from matmix.surgery import find, select
from sequence.series.models import create_series_model, list_series_models
from tests.campaigns.damage import ODD, bent_text
from tests.campaigns.odd import Call, short, thing

LITERALS = (
    "None", "True", "-1", "0", "2.5", "nan", "1e999", "9" * 400, "''", "'x'", "(1,)", "(1, 2)", "[]", "{}", "{'a': 1}",
    "{[]}", "b'x'", "1j", "...", "x", "x()", "-x", "*x", "**x", "f'{x}'", "'\ud800'", "1 if 1 else 2", "[" * 300,
    "-" * 9000 + "1",
    "lambda: 0", "(1, 'a', None)", "((1, 2), (3,))", "'" + "a" * 5000 + "'", "0x", "1_0", "0777", "'\\N{x}'", "'\\x00'",
)  # fmt: skip
"""What may stand behind an option, in a spec."""
MODELS = (
    "metaformer_s18(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), mixers='pooling')", "caformer_s18(num_classes=3)",
    "vision:poolformer_s12(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))", "timm:test_vit(num_classes=3)", "timm:test_vit",
    "gfnet_ti(depth=1, dim=8)", "timm:test_resnet(in_chans=1)",
    "hf:bert(num_hidden_layers=1, hidden_size=16, num_attention_heads=2)", "hf:gpt2(n_layer=1, n_embd=16, n_head=2)",
)  # fmt: skip
GENERAL = ("spec", "mixer", "model", "dim", "grid", "depth", "where", "exclude", "layers", "name", "option", "options",
           "package", "site", "mixers", "channels", "length", "horizon", "goal", "classes")  # fmt: skip
"""What a message may be about, besides the words of the spec."""


def calls(seed: int) -> Iterator[Call]:
    """Endless; every kind of spec in turn."""
    draw = random.Random(seed)
    while True:
        for kind in (_mixer, _mixer, _pattern, _model, _series, _sites):
            yield kind(draw)


def _bent_spec(draw: random.Random, spec: str) -> Any:
    """A spec with another value, another option, another letter or something else altogether."""
    way = draw.randrange(10)
    if way == 0:
        return draw.choice((thing(draw), draw.choice(ODD)))
    if way in (1, 2, 3):
        option = draw.choice(
            (*re.findall(r"(\w+)=", spec), "unknown", "expand", "heads", "dim", "__class__", "self", "name")
        )
        text = f"{option}={draw.choice(LITERALS)}"
        inner = spec.partition("(")[2][:-1] if spec.endswith(")") else ""
        return f"{spec.partition('(')[0]}({', '.join(filter(None, [inner, text]))})"
    if way in (4, 5):
        return re.sub(r"=[^,()]+", lambda _: f"={draw.choice(LITERALS)}", spec, count=1)
    if way == 6:
        more = draw.choice(
            ("*0", "*-1", "*2.5", "*x", "*99999999999", "*2*3", ",", ", x", "*2", "()", "()()", ".x", "[0]", "; x", "#")
        )
        return spec + more
    for _ in range(draw.randrange(1, 3)):
        spec = bent_text(draw, spec)
    return spec


def _call(text: str, run: Callable[[], Any], *given: Any) -> Call:
    words = {word for one in given if isinstance(one, str) for word in re.findall(r"[A-Za-z_]\w*", one)[:50]}

    def built() -> Any:
        with torch.device("meta"):
            return run()

    return Call(text, built, (*GENERAL, *sorted(words)), ())


@cache
def _specs() -> tuple[str, ...]:
    found = []
    for name in matmix.list_mixers():
        info = matmix.mixer_info(name)
        if info.cls.__module__.startswith("matmix."):
            for options in ({}, *info.variants):
                told = {**info.smallest, **options}
                told.pop("dim", None)
                found.append(f"{name}({', '.join(f'{option}={value!r}' for option, value in told.items())})")
    return tuple(found)


def _mixer(draw: random.Random) -> Call:
    spec = _bent_spec(draw, draw.choice(_specs()))
    dim, grid = (8 if draw.random() < 0.8 else thing(draw)), ((4, 4) if draw.random() < 0.8 else thing(draw))
    return _call(
        f"create_mixer({short(spec)}, {short(dim)}, {short(grid)})", lambda: create_mixer(spec, dim, grid), spec
    )


def _pattern(draw: random.Random) -> Call:
    parts = [
        draw.choice(("identity", "pooling", "ssd", "hydra(expand=1)")) + draw.choice(("", "*2", "*3")) for _ in "12"
    ]
    spec = _bent_spec(draw, ", ".join(parts))
    depth = draw.choice((6, 12, thing(draw)))
    if draw.random() < 0.3:
        return _call(f"layer_specs({short(spec)}, {short(depth)})", lambda: layer_specs(spec, depth), spec)
    return _call(f"create_mixers({short(spec)}, {short(depth)}, 8, 4)", lambda: create_mixers(spec, depth, 8, 4), spec)


def _model(draw: random.Random) -> Call:
    spec = _bent_spec(draw, draw.choice(MODELS))
    return _call(f"create_model({short(spec)})", lambda: create_model(spec), spec)


def _series(draw: random.Random) -> Call:
    name: Any = draw.choice(list_series_models())
    options: dict[str, Any] = {"length": 16, "channels": 2, "horizon": 4, "mixer": draw.choice(("default", "pooling"))}
    way = draw.randrange(4)
    if way == 0:
        options["mixer"] = _bent_spec(draw, draw.choice(_specs()))
    elif way == 1:
        name = draw.choice((bent_text(draw, name), thing(draw)))
    elif way == 2:
        options[draw.choice(tuple(options))] = thing(draw)
    else:
        options[draw.choice(("unknown", "", "self", "dim", "depth", "heads", "marks"))] = thing(draw)
    text = f"create_series_model({short(name)}, {', '.join(f'{key}={short(value)}' for key, value in options.items())})"
    return _call(text, lambda: create_series_model(name, **options), name, options["mixer"], *options)


@cache
def _found() -> tuple[Site, ...]:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    return tuple(find(Two().eval(), example=(torch.zeros(1, 4, 8),)))


def _sites(draw: random.Random) -> Call:
    sites = list(_found())
    good = (
        "all",
        "blocks.*.self_attn",
        "self_attn",
        r"blocks\.[02]\.self_attn",
        *KINDS,
        *(site.name for site in sites),
    )
    odd = (
        "a{99999999999}",
        "(?P<x>)(?P<x>)",
        "(" * 200,
        "[",
        "[z-a]",
        "\\",
        "(?i",
        "*" * 50,
        "(a+)+$",
        "(?<=a+)b",
        "x{2,1}",
    )

    def one() -> Any:
        made = draw.choice((bent_text(draw, draw.choice(good)), draw.choice(odd), thing(draw)))
        return None if made is len else made  # a function of a person's may fail in its own way

    where = draw.choice((one(), (one(), draw.choice(good)), draw.choice(good)))
    given = (
        {draw.choice(("exclude", "layers")): draw.choice((one(), thing(draw), [thing(draw)]))}
        if draw.random() < 0.5
        else {}
    )
    text = f"select(sites, {short(where)}, {', '.join(f'{key}={short(value)}' for key, value in given.items())})"
    return _call(text, lambda: select(sites, where, **given), *given)
