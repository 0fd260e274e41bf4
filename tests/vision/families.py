"""One small model of each family, and of each form of a family that runs other code: milliseconds a forward."""

from __future__ import annotations

from typing import Any

from torch import nn

import vision

SIZE = 32  # images
_FOUR: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
_META: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
_VIM2 = {
    "mixers": "selective_token(d_state=4, dt_rank=2)",
    "channel_mixers": "selective_channel(d_state=4, expand=2)",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "activemlp_xt": _META | {"depths": (2, 1, 1, 1)},
    "affnet": {"depths": (1,) * 5, "dims": (8, 8, 8, 16, 16), "expand": 2},
    "caformer_s18": _META,
    "cdfformer_s18": _META,
    "dfformer_s18": _META,
    "dfformer_s18_afno": _META,
    "ffnet_1": {**_FOUR, "stem_dim": 8},
    "ffnet_3": {**_FOUR, "stem_dim": 8, "kernel": 7, "layer_scale": 0.1},
    "ffnet_seg": {**_FOUR, "stem_dim": 8},
    "gfnet_ti": {"depths": (1, 1), "dims": 8, "patch": (8, 1)},
    "gfnet_h_ti": {"depths": (1, 1), "dims": (8, 12), "patch": (4, 2)},
    "hydra_vit_b": {"depths": (1, 1), "dims": 32, "patch": 8, "mixers": "hydra(d_state=4)"},
    "inception_former_s": {
        "depths": (1, 1, 1, 1), "dims": (16, 16, 24, 24),
        "mixers": "inception(head_dim=4, pool=2), inception(head_dim=4, heads=2, pool=2), "
        "inception(head_dim=4, heads=4), inception(head_dim=4, heads=5)",
    },
    "metaformer_id_s12": _META,
    "metaformer_ppaa_s12_224": {**_META, "dims": (8, 16, 32, 32)},
    "metaformer_ppff_s12_224": _META,
    "mlp_mixer_b16": {"depths": (1, 1), "dims": (8, 8), "kernel": ((8,), ()), "mixers": "mlp(hidden=32)"},
    "poolformer_s12": _META,
    "poolformerv2_s12": _META,
    "raftmlp_s": {"depths": (1, 1), "dims": (8, 16)},
    "randformer_s12": _META,
    "vim2_t": {"depths": (1, 2), "dims": (8, 16), **_VIM2},
    "vmamba_t_s1l8": {"depths": (1, 1), "dims": (8, 16)},
    "vmamba_v0_t": {"depths": (1, 1), "dims": (8, 16)},
}  # fmt: skip


def small(name: str, **options: Any) -> nn.Module:
    """The small model of that name, on images of ``SIZE`` and five classes."""
    settings = {"img_size": SIZE, "num_classes": 5, **FAMILIES[name], **options}
    return vision.create_model(name, **settings)
