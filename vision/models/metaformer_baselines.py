"""IdentityFormer, RandFormer, PoolFormerV2, ConvFormer, CAFormer: "MetaFormer Baselines for Vision", arXiv 2210.13452.

Weights: https://github.com/sail-sg/metaformer, section "Models" of its README, ``<name>.pth`` (at 384 x 384
``<name>_384.pth``; pretrained on ImageNet-21K ``<name>_in21k.pth``, ``_in21ft1k.pth`` and ``_384_in21ft1k.pth``)::

    model = vision.create_model("caformer_s18")
    matmix.load_published(model, torch.load("caformer_s18.pth"), source="sail-sg/metaformer")

timm has the same weights of all but IdentityFormer and RandFormer; ``create_model(name, pretrained=True)`` fetches
them, ``source="timm"`` takes its files.
"""

from __future__ import annotations

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
_SOURCE = {"paper": "2210.13452", "source": "sail-sg/metaformer"}

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
            checkpoint=f"{_name}.pth",
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
            checkpoint=f"{_name}.pth",
            timm=_name,
            classifier="head.fc.fc2",
            **_SOURCE,
        )

register(
    "metaformer_s18",
    MetaFormer,
    {"depths": SIZES_18["s18"][0], "dims": SIZES_18["s18"][1], "mixers": "sep_conv, sep_conv, attention, attention"},
    classifier="head.fc.fc2",
    **_SOURCE,
)
