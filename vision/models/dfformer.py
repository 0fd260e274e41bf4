"""DFFormer, CDFFormer, GFFormer and their ablations: "FFT-based Dynamic Token Mixer for Vision", arXiv 2303.03932.

Weights: https://github.com/okojoalg/dfformer/releases/tag/weights, ``{dfformer,cdfformer}_{s18,s36,m36,b36}.pth``; none
of GFFormer and the ablations. ``vision.create_model("dfformer_s18", pretrained=True)`` fetches its file, and for one
that is already here::

    model = vision.create_model("dfformer_s18")
    state = matmix.published.unwrap(torch.load("dfformer_s18.pth", weights_only=True))
    matmix.load_published(model, state, source="okojoalg/dfformer")

Filters are tied to the grids of ``img_size``. To other sizes: load, then ``model.resize_(384)``, which carries the
real kernels over (with ``mixers="dynamic_filter(resize='bicubic')"`` it interpolates the spectra, as the published code
does); or ``dynamic_img_size=True``, below, the form of the published backbones for detection and segmentation. Those
load their checkpoint by a first interpolation to the training size; here: load at 224 with
``mixers="dynamic_filter(resize='bicubic')"``, ``resize_`` to that size, and load the ``state_dict`` of that into a
model with ``img_size`` of that size and ``dynamic_img_size=True``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matmix.ranges import Depth
from vision.base import Size, image_size
from vision.metaformer import MetaFormer, stage_specs, with_options
from vision.models.metaformer_baselines import SIZES_18
from vision.registry import register


class DFFormer(MetaFormer):
    """``MetaFormer`` with the published way of running dynamic filters at any size.

    Args:
        dynamic_img_size: every forward interpolates the filters of ``img_size`` (their spectra, as images, with aligned
            corners) to the grid it gets, so that any size runs (``weight_resize`` in the published code). As published
            their grids are the image's size over 4, 8, 16 and 32, rounded down.
        depths, dims, mixers, img_size, **options: as in ``MetaFormer``.
    """

    def __init__(
        self,
        depths: Sequence[Depth] = (3, 3, 9, 3),
        dims: Sequence[int] = (64, 128, 320, 512),
        mixers: str | Sequence[str] = "dynamic_filter",
        *,
        img_size: Size = 224,
        dynamic_img_size: bool = False,
        **options: Any,
    ) -> None:
        if dynamic_img_size:
            rows, columns = image_size(img_size)
            specs = []
            for i, stage in enumerate(stage_specs(mixers, depths)):
                home = {"built": (rows // 2 ** (i + 2), columns // 2 ** (i + 2)), "resize": "bicubic"}
                specs.append(", ".join(with_options(spec, "dynamic_filter", **home) for spec in stage))
            mixers = specs
        super().__init__(depths, dims, mixers, img_size=img_size, **options)


_WEIGHTS = "https://github.com/okojoalg/dfformer/releases/download/weights"
_PAPER: dict[str, Any] = {
    "paper": "2303.03932",
    "source": "okojoalg/dfformer",
    "classifier": "head.fc.fc2",
    "fixed_input_size": True,
}

for _family, _mixers in {
    "dfformer": "dynamic_filter",
    "cdfformer": "sep_conv, sep_conv, dynamic_filter, dynamic_filter",
}.items():
    for _size, (_depths, _dims) in SIZES_18.items():
        _name = f"{_family}_{_size}"
        _settings = {"depths": _depths, "dims": _dims, "mixers": _mixers}
        register(_name, DFFormer, _settings, checkpoint=f"{_WEIGHTS}/{_name}.pth", **_PAPER)

for _name, _mixers, _act in (
    ("gfformer_s18", "global_filter(bottleneck=2)", "star_relu"),
    ("dfformer_s18_afno", "afno(bottleneck=2)", "star_relu"),
    ("dfformer_s18_k2", "dynamic_filter(filters=2)", "star_relu"),
    ("dfformer_s18_d8", "dynamic_filter(mlp_ratio=0.125)", "star_relu"),
    ("dfformer_s18_gelu", "dynamic_filter(act='gelu')", "gelu"),
    ("dfformer_s18_relu", "dynamic_filter(act='relu')", "relu"),
):
    _depths, _dims = SIZES_18["s18"]
    register(
        _name,
        DFFormer,
        {"depths": _depths, "dims": _dims, "mixers": _mixers, "act": _act},
        **{**_PAPER, "fixed_input_size": "afno" not in _name},
    )
