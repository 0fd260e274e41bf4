"""Names of models: ``vision.create_model``, ``vision.list_models`` and the registration in timm.

One call a published size, in the family's file (``vision/models/*.py``; all of them are imported with ``vision``)::

    register("caformer_s18", MetaFormer, {"depths": (3, 3, 9, 3), ...}, paper="2210.13452",
             source="sail-sg/metaformer", checkpoint="https://.../caformer_s18.pth", timm="caformer_s18")

``vision.create_model("caformer_s18")`` is always ours. In timm's registry ours stands under its plain name where timm
has no model of that name, and under ``"matmix_"`` + name where it has: timm's own models are never touched
(``timm_name`` tells which).
"""

from __future__ import annotations

import fnmatch
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import timm.models
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from matmix.ranges import Allowed, allowed, either, one_of, or_none, refuse, shown
from matmix.spec import hint
from vision.base import VisionModel, options_of
from vision.published import adapt
from vision.words import unknown_option


@dataclass(frozen=True)
class ModelInfo:
    """One name of the registry."""

    name: str
    timm_name: str
    cls: type[VisionModel]
    defaults: dict[str, Any]
    paper: str  # arXiv number
    source: str  # owner/repo of the published code
    checkpoint: str  # where the published weights are, "" where there are none
    cfg: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> list[str]:
        """What ``create_model`` can override."""
        return options_of(self.cls)


_REGISTRY: dict[str, ModelInfo] = {}
_BUILDER = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "cache_dir",
            "features_only", "out_indices", "feature_cls")  # fmt: skip
_CLASSES = one_of("getter", "hook", "fx", "dict", "list")
_FOUND = {
    "features_only": allowed(bool),
    "out_indices": allowed(int | tuple[int, ...] | None, lists=True),
    "feature_cls": or_none(either(_CLASSES, Allowed("a class", lambda value: isinstance(value, type)))),
}
_KINDS = {name: kind for name, kind in _FOUND.items() if kind is not None}
"""What of timm's own options may be; it checks none."""


def register(
    name: str,
    cls: type[VisionModel],
    defaults: dict[str, Any],
    *,
    paper: str,
    source: str,
    checkpoint: str = "",
    timm: str | None = None,
    **cfg: Any,
) -> None:
    """Put a published size under a name, ours and timm's.

    Args:
        name: as the papers have it.
        cls: the model class.
        defaults: its arguments for this size; ``create_model`` may override each.
        paper: arXiv number.
        source: ``owner/repo`` of the published code, a key of ``cls.published`` where that code has weights.
        checkpoint: address of the published weights; ``create_model(name, pretrained=True)`` takes them from there
            unless ``timm`` names a copy.
        timm: timm's architecture with these very weights, whose pretrained tags are then ours too.
        **cfg: entries of the pretrained configuration that differ from: input 3 x 224 x 224, final map 7 x 7, bicubic
            interpolation, crop 1.0, ImageNet mean and deviation, ``first_conv="stem.conv"``, ``classifier="head.fc"``.
    """
    if name in _REGISTRY:
        raise ValueError(f"the model name {name!r} is taken by {_REGISTRY[name].cls.__qualname__}")
    unknown = set(defaults) - set(options_of(cls))
    if unknown:
        raise ValueError(f"{name}: {cls.__name__} has no option {', '.join(sorted(unknown))}")
    taken = timm_models().is_model(name)
    full = {
        "input_size": (3, 224, 224), "pool_size": (7, 7), "crop_pct": 1.0, "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "num_classes": 1000,
        "first_conv": "stem.conv", "classifier": "head.fc", "paper_ids": f"arXiv:{paper}",
        "origin_url": f"https://github.com/{source}", **cfg,
    }  # fmt: skip
    if checkpoint and timm is None:
        full["url"] = checkpoint
    info = ModelInfo(name, f"matmix_{name}" if taken else name, cls, defaults, paper, source, checkpoint, full)
    _REGISTRY[name] = info
    module = sys.modules[sys._getframe(1).f_globals["__name__"]]
    _register_in_timm(info, module, timm)


def timm_models() -> ModuleType:
    """timm's registry (a function, because an argument of ``register`` has timm's name)."""
    return timm.models


def _register_in_timm(info: ModelInfo, module: ModuleType, arch: str | None) -> None:
    """Enrol an entry point of the family's module, with its configurations, tags of timm's weights included."""

    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        return _build(info, {"pretrained": pretrained, **options})

    entry.__name__ = entry.__qualname__ = info.timm_name
    entry.__module__ = module.__name__
    entry.__doc__ = f"{info.name} (arXiv {info.paper}) of matmix; {info.cls.__name__} says what can be overridden."
    cfgs: dict[str, Any] = {}
    if arch is not None:
        for tagged, theirs in timm.models.get_arch_pretrained_cfgs(arch).items():
            tag = tagged.partition(".")[2]
            kept = ("input_size", "pool_size", "crop_pct", "num_classes", "license", "fixed_input_size")
            same = {key: getattr(theirs, key) for key in kept}
            cfgs[f"{info.timm_name}.{tag}"] = {**info.cfg, **same, "hf_hub_id": theirs.hf_hub_id, "tag": tag}
    known: dict[str, Any] = module.__dict__.setdefault("default_cfgs", {})
    known.update(timm.models.generate_default_cfgs(cfgs or {info.timm_name: info.cfg}))
    timm.models.register_model(entry)


def list_models(pattern: str = "*") -> list[str]:
    """Our names that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(_REGISTRY, pattern))


def model_info(name: str) -> ModelInfo:
    """What the registry knows about a model.

    Raises:
        ValueError: for an unknown name; the message lists the close ones.
    """
    if name not in _REGISTRY:
        raise ValueError(
            f"unknown model {name!r}{hint(name, _REGISTRY)} (vision.list_models() lists all {len(_REGISTRY)})"
        )
    return _REGISTRY[name]


def timm_name(name: str) -> str:
    """The name of our model in timm's registry."""
    return model_info(name).timm_name


def create_model(name: str, /, **overrides: Any) -> nn.Module:
    """Build one of our models.

    Args:
        name: one of ``list_models()``; ``"name.tag"`` picks one of timm's pretrained configurations where timm has
            these weights.
        **overrides: arguments of the model's class (``num_classes``, ``in_chans``, ``img_size``, ``depths``, ...), or
            timm's: ``features_only=True`` with ``out_indices=(...)`` for a list of maps, ``pretrained=True``,
            ``pretrained_cfg_overlay={"file": path}`` to start from a file in the published or in timm's naming.

    Raises:
        ValueError: for an unknown name or override; the message lists the close ones.
    """
    if not isinstance(name, str):
        raise ValueError(f"create_model: name must be one of vision.list_models(), got {shown(name)}")
    base, _, tag = name.partition(".")
    info = model_info(base)
    tags = [known.partition(".")[2] for known in timm.models.get_arch_pretrained_cfgs(info.timm_name)]
    if tag and tag not in tags:
        raise ValueError(f"{base} has no tag {tag!r}{hint(tag, [known for known in tags if known])}")
    return _build(info, {"pretrained_cfg": tag, **overrides} if tag else overrides)


def _build(info: ModelInfo, overrides: dict[str, Any]) -> nn.Module:
    allowed = info.options
    for key in overrides:
        if key not in allowed and key not in _BUILDER:
            raise ValueError(unknown_option(info.name, key, [*allowed, *_BUILDER]))
        if key in _KINDS and not _KINDS[key].holds(overrides[key]):
            raise refuse(f"{info.name}: {key}", _KINDS[key], overrides[key])
    options = {**info.defaults, **overrides}
    features = {"feature_cls": options.pop("feature_cls", None) or "getter"}
    if options.get("features_only"):
        features["out_indices"] = options.pop("out_indices", None)
    elif "out_indices" in options:
        raise ValueError("out_indices is an option of features_only=True")
    model: nn.Module = timm.models.build_model_with_cfg(
        info.cls,
        info.timm_name,
        options.pop("pretrained", False),
        feature_cfg=features,
        pretrained_filter_fn=adapt,
        **options,
    )
    return model
