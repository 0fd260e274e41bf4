"""Average pooling of stride 1 over images, by itself or less the token (PoolFormer)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from matmix.adapters.base import Attended, parts_of
from matmix.adapters.convolution import ChannelsFirst
from matmix.adapters.registry import register_adapter
from matmix.adapters.site import Place, Site
from matmix.matrices.average_pool import AveragePool
from matmix.matrices.identity import Identity


def window_of(module: Any) -> int | None:
    """The odd side of a pooling that keeps the size and counts no padding; None for any other module."""
    if not isinstance(module, nn.AvgPool2d) or module.count_include_pad or module.divisor_override:
        return None
    numbers = (module.kernel_size, module.stride, module.padding)
    sides = [size if isinstance(size, tuple) else (size, size) for size in numbers]
    (side, other), stride, padding = sides
    keeps = stride == (1, 1) and padding == (side // 2, side // 2) and not module.ceil_mode
    return side if keeps and side == other and side % 2 and side > 1 else None


def width_around(place: Place) -> int:
    """The width of the norm beside the module, which has no parameters to tell it; 0: not known before a run."""
    for module in place.around():
        for name, part in module.named_children():
            weight = getattr(part, "weight", None)
            if "norm" in name and isinstance(weight, Tensor) and weight.dim() == 1:
                return weight.shape[0]
        if any(True for _ in module.parameters()):
            break  # the block around it: further out the width may be another
    return 0


def pooled(module: nn.Module, image: Tensor) -> Attended:
    """The matrix of a pooling over an image."""
    grid, window = tuple(image.shape[2:]), window_of(module)
    assert window is not None
    values = image.flatten(2).mT.unsqueeze(1)
    matrix = AveragePool.of(values, grid, window)
    return Attended(matrix, values, lambda mixed: mixed.squeeze(1).mT.unflatten(2, grid))


class Pooling(ChannelsFirst):
    """What both have in common."""

    def _site(self, place: Place, refused: dict[str, str]) -> Site:
        return self.known(
            place,
            "pooling",
            width_around(place),
            heads=1,
            causal=False,
            refused={"matrix": "pooling has no queries and keys", **refused},
            options={"axes": 2},
        )


@register_adapter
class AveragePooling(Pooling):
    """``nn.AvgPool2d`` of stride 1 that keeps the size and counts no padding."""

    name = "average_pooling"
    understood = frozenset({"input"})

    def site(self, place: Place) -> Site | None:
        return None if window_of(place.module) is None else self._site(place, {})

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        (image,) = self.arguments(site, args, kwargs).values()
        return pooled(module, image)


@register_adapter
class PoolingLessToken(Pooling):
    """``pool(x) - x``: the matrix is that of the pooling less the identity."""

    name = "pooling"
    understood = frozenset({"x"})

    def site(self, place: Place) -> Site | None:
        module: Any = place.module
        if parts_of(module) != {"pool"} or window_of(module.pool) is None:
            return None
        return self._site(place, {})

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        (image,) = self.arguments(site, args, kwargs).values()
        found = pooled(module.pool, image)
        return found._replace(matrix=found.matrix - Identity.like(found.values))
