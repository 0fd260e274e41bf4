"""IdentityFormer, RandFormer, PoolFormerV2, ConvFormer, CAFormer: "MetaFormer Baselines for Vision", arXiv 2210.13452.

Weights: https://huggingface.co/sail/dl, linked in the README of https://github.com/sail-sg/metaformer, as
``<family>/<name>.pth``; of ConvFormer and CAFormer also ``<name>_384.pth``, ``<name>_in21k.pth`` (21,841 classes),
``<name>_in21ft1k.pth`` and ``<name>_384_in21ft1k.pth``::

    model = vision.create_model("caformer_s18")
    matmix.load_published(model, torch.load("caformer_s18.pth", weights_only=True), source="sail-sg/metaformer")

timm has the same weights of all but IdentityFormer and RandFormer, under its own names (``source="timm"``).
``vision.create_model(name, pretrained=True)`` fetches them, the authors' for those two; a tag picks another of timm's
sets, ``"caformer_s18.sail_in22k_ft_in1k_384"``.
"""

from __future__ import annotations

from typing import Any

from vision.metaformer import MetaFormer
from vision.registry import register

SIZES_12 = {
    "s12": ((2, 2, 6, 2), (64, 128, 320, 512)),
    "s24": ((4, 4, 12, 4), (64, 128, 320, 512)),
    "s36": ((6, 6, 18, 6), (64, 128, 320, 512)),
    "m36": ((6, 6, 18, 6), (96, 192, 384, 768)),
    "m48": ((8, 8, 24, 8), (96, 192, 384, 768)),
}
SIZES_18 = {
    "s18": ((3, 3, 9, 3), (64, 128, 320, 512)),
    "s36": ((3, 12, 18, 3), (64, 128, 320, 512)),
    "m36": ((3, 12, 18, 3), (96, 192, 384, 576)),
    "b36": ((3, 12, 18, 3), (128, 256, 512, 768)),
}
_WEIGHTS = "https://huggingface.co/sail/dl/resolve/main"
_SOURCE: dict[str, Any] = {"paper": "2210.13452", "source": "sail-sg/metaformer"}

for _family, _mixers in {
    "identityformer": "identity",
    "randformer": "identity, identity, random, random",
    "poolformerv2": "pooling",
}.items():
    for _size, (_depths, _dims) in SIZES_12.items():
        _name = f"{_family}_{_size}"
        register(
            _name,
            MetaFormer,
            {"depths": _depths, "dims": _dims, "mixers": _mixers, "norm": "map", "head": "linear"},
            checkpoint=f"{_WEIGHTS}/{_family}/{_name}.pth",
            timm=_name if _family == "poolformerv2" else None,
            fixed_input_size=_family == "randformer",
            **_SOURCE,
        )

for _family, _mixers in {"convformer": "sep_conv", "caformer": "sep_conv, sep_conv, attention, attention"}.items():
    for _size, (_depths, _dims) in SIZES_18.items():
        _name = f"{_family}_{_size}"
        register(
            _name,
            MetaFormer,
            {"depths": _depths, "dims": _dims, "mixers": _mixers},
            checkpoint=f"{_WEIGHTS}/{_family}/{_name}.pth",
            timm=_name,
            classifier="head.fc.fc2",
            **_SOURCE,
        )

# The frame for any composition: create_model("metaformer_s18", mixers="pooling, pooling, hydra, attention").
register(
    "metaformer_s18",
    MetaFormer,
    {"depths": SIZES_18["s18"][0], "dims": SIZES_18["s18"][1], "mixers": "sep_conv, sep_conv, attention, attention"},
    classifier="head.fc.fc2",
    **_SOURCE,
)
