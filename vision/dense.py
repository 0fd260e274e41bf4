"""Dense prediction: any model as the backbone of RetinaNet, Mask R-CNN and Semantic FPN.

    vision.retinanet(vision.create_model("poolformer_s12"), num_classes=91)
    vision.mask_rcnn(vision.create_model("dfformer_s18"), num_classes=91)
    vision.semantic_fpn(vision.create_model("caformer_s18", drop_path_rate=0.1), num_classes=150)

The first two are torchvision's own models around a ``Pyramid``: their training and evaluation are torchvision's, and
``num_classes`` counts the background (class 0) as there. Weights are loaded into the model before it is handed over;
models whose published backbones norm their maps take ``feature_norms=True``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from matmix.arguments import checking_arguments
from matmix.mixers import Mixer
from matmix.mixers.options import checking_options
from matmix.ranges import Chance, Count
from vision.base import Size, VisionModel, image_size


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps ``(B, C, h, w)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Pyramid(nn.Module):
    """Maps of a model at chosen strides, joined from coarse to fine: a feature pyramid (arXiv 1612.03144).

    Of several stages with one stride the last is taken. A stride that no stage has (models of one resolution have a
    single one) comes from the nearest: transposed convolutions refine it, pooling coarsens it (arXiv 2203.16527).

    Every map goes through a layer norm first, unless the model has ``feature_norms`` of its own: the maps of networks
    with norms inside of their residual branches have no scale of their own.

    Args:
        model: one of ours or of timm's, with ``feature_info`` and ``forward_intermediates``. It is taken over: what
            stands behind the last map that is needed is removed.
        strides: from fine to coarse, powers of two.
        width: channels of every level.
        extra: torchvision's block that makes further levels.
    """

    def __init__(
        self,
        model: nn.Module,
        strides: Sequence[int] = (4, 8, 16, 32),
        width: int = 256,
        extra: ExtraFPNBlock | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(model, "forward_intermediates") or not hasattr(model, "prune_intermediate_layers"):
            raise ValueError(f"model must give intermediate maps (forward_intermediates), got {type(model).__name__}")
        info = list(model.feature_info)  # type: ignore[arg-type]
        sources = [_nearest([entry["reduction"] for entry in info], stride) for stride in strides]
        self.taken = sorted(set(sources))
        self.places = [self.taken.index(source) for source in sources]
        self.model = model
        model.prune_intermediate_layers(self.taken, prune_norm=True)  # type: ignore[operator]
        dims = [info[source]["num_chs"] for source in sources]
        normed = getattr(model, "feature_norms", None) is not None
        self.norms = nn.ModuleList(
            nn.Identity() if normed else ChannelNorm(info[source]["num_chs"], eps=1e-6) for source in self.taken
        )
        self.resample = nn.ModuleList(
            _resample(dim, info[source]["reduction"], stride)
            for dim, source, stride in zip(dims, sources, strides, strict=True)
        )
        self.fpn = FeaturePyramidNetwork(dims, width, extra)
        self.strides, self.out_channels = tuple(strides), width

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Images ``(B, C, H, W)`` to maps ``(B, width, h, w)`` by name: "0" is the finest."""
        maps = self.model.forward_intermediates(x, indices=self.taken, intermediates_only=True)  # type: ignore[operator]
        maps = [norm(level) for norm, level in zip(self.norms, maps, strict=True)]
        levels = [change(maps[place]) for change, place in zip(self.resample, self.places, strict=True)]
        return self.fpn(OrderedDict((str(i), level) for i, level in enumerate(levels)))


def _nearest(reductions: Sequence[int], stride: int) -> int:
    """The last stage with this stride, or with the nearest one (the coarser of two)."""
    distance = [(abs(math.log2(reduction / stride)), -reduction, -i) for i, reduction in enumerate(reductions)]
    return -min(distance)[2]


def _resample(dim: int, reduction: int, stride: int) -> nn.Module:
    """Maps of stride ``reduction`` to maps of ``stride``."""
    steps = math.log2(reduction / stride)
    if steps != int(steps):
        raise ValueError(f"strides: {stride} is no power of two away from {reduction}, the nearest the model has")
    if steps < 0:
        return nn.Sequential(*(nn.MaxPool2d(2, ceil_mode=True) for _ in range(-int(steps))))
    return nn.Sequential(*(nn.ConvTranspose2d(dim, dim, 2, 2) for _ in range(int(steps))))


class SemanticFPN(nn.Module):
    """Images ``(B, C, H, W)`` to the logits of every pixel ``(B, num_classes, H, W)`` (arXiv 1901.02446, figure 3).

    Every level of a feature pyramid is brought to a quarter of the image's size in steps of convolution 3 x 3, group
    norm, ReLU and bilinear interpolation by two; their sum is classified, and the logits are interpolated.

    Args:
        model: see ``Pyramid``.
        num_classes: classes of pixels.
        width: channels of the pyramid.
        inner: channels of the steps.
        drop_rate: dropout of whole channels before the classifier.
    """

    @checking_options
    def __init__(
        self, model: nn.Module, num_classes: Count, *, width: Count = 256, inner: Count = 128, drop_rate: Chance = 0.1
    ) -> None:
        super().__init__()
        self.backbone = Pyramid(model, (4, 8, 16, 32), width)

        def step(channels: int) -> nn.Module:
            conv = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
            return nn.Sequential(conv, nn.GroupNorm(math.gcd(32, max(1, inner // 4)), inner), nn.ReLU())

        self.branches = nn.ModuleList(
            nn.ModuleList(step(inner if j else width) for j in range(max(1, i))) for i in range(4)
        )
        self.drop = nn.Dropout2d(drop_rate)
        self.classifier = nn.Conv2d(inner, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = list(self.backbone(x).values())
        total = None
        for i, (level, branch) in enumerate(zip(levels, self.branches, strict=True)):
            for j, step in enumerate(branch):  # type: ignore[arg-type, var-annotated]
                level = step(level)
                if i:
                    level = _resized(level, levels[i - j - 1])
            total = level if total is None else total + level
        return _resized(self.classifier(self.drop(total)), x)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear interpolation to the size of another map."""
    return F.interpolate(x, like.shape[2:], mode="bilinear")


@checking_arguments()
def retinanet(
    model: nn.Module, num_classes: Count, *, width: Count = 256, img_size: Size | None = None, **options: Any
) -> RetinaNet:
    """torchvision's RetinaNet (arXiv 1708.02002) on the strides 8 to 128 of a model's pyramid.

    Args:
        model: see ``Pyramid``.
        num_classes: with the background.
        width: channels of the pyramid.
        img_size: every image is brought to this size, an int or ``(H, W)``, and the model is built for it; needed by
            models that are tied to a size. Otherwise the short side becomes ``min_size`` (800), as torchvision does.
        **options: of ``torchvision.models.detection.RetinaNet``.
    """
    options = {**_images(model, img_size), **options}
    return RetinaNet(Pyramid(model, (8, 16, 32), width, LastLevelP6P7(width, width)), num_classes, **options)


@checking_arguments()
def mask_rcnn(
    model: nn.Module, num_classes: Count | None, *, width: Count = 256, img_size: Size | None = None, **options: Any
) -> MaskRCNN:
    """torchvision's Mask R-CNN (arXiv 1703.06870) on the strides 4 to 64 of a model's pyramid.

    Args:
        model, width, img_size: as in ``retinanet``.
        num_classes: with the background; None where predictors are given, as torchvision wants it.
        **options: of ``torchvision.models.detection.MaskRCNN``.
    """
    options = {**_images(model, img_size), **options}
    return MaskRCNN(Pyramid(model, (4, 8, 16, 32), width, LastLevelMaxPool()), num_classes, **options)


@checking_arguments()
def semantic_fpn(model: nn.Module, num_classes: Count, *, img_size: Size | None = None, **options: Any) -> SemanticFPN:
    """A ``SemanticFPN``; ``img_size`` resizes a model that is tied to a size, other options are the class's."""
    if img_size is not None and isinstance(model, VisionModel):
        model.resize_(img_size)
    return SemanticFPN(model, num_classes, **options)


def _images(model: nn.Module, img_size: Size | None) -> dict[str, Any]:
    """How torchvision prepares images for a model."""
    if img_size is None:
        for name, module in model.named_modules():
            if isinstance(module, Mixer) and module.traits.length == "fixed":
                raise ValueError(
                    f"img_size is needed: {name} of {type(model).__name__} is tied to the grid {module.grid}, and "
                    f"images come in all sizes"
                )
    cfg = getattr(model, "pretrained_cfg", None) or {}
    options = {"image_mean": list(cfg["mean"]), "image_std": list(cfg["std"])} if "mean" in cfg else {}
    if img_size is None:
        return options
    height, width = image_size(img_size)
    if isinstance(model, VisionModel):
        model.resize_((height, width))
    return {**options, "fixed_size": (width, height), "size_divisible": 1}
