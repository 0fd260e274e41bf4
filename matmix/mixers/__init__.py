"""Mixers, one a file. Importing this package registers every file in it: a new mixer is a new file."""

from importlib import import_module
from pkgutil import iter_modules

from matmix.mixers.base import Context, Grid, Mixer, Projected, Traits
from matmix.mixers.registry import (
    MixerInfo,
    create_mixer,
    create_mixers,
    list_mixers,
    mixer_info,
    register,
)
from matmix.spec import layer_specs, parse_spec

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Context",
    "Grid",
    "Mixer",
    "MixerInfo",
    "Projected",
    "Traits",
    "create_mixer",
    "create_mixers",
    "layer_specs",
    "list_mixers",
    "mixer_info",
    "parse_spec",
    "register",
]
