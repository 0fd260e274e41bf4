"""Depthwise convolutions of stride 1 over images and sequences, channels first; and SepConv around one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from matmix.adapters.base import Adapter, Attended, Call, parts_of
from matmix.adapters.registry import register_adapter
from matmix.adapters.site import Place, Site
from matmix.matrices.convolution import Convolution


class ChannelsFirst(Adapter):
    """``module(image (B, C, rows, columns))`` or ``module(sequence (B, C, L))``, the same out."""

    def convolution(self, place: Place, kernel: Any, dim: int, refused: dict[str, str]) -> Site:
        """The site of what mixes tokens by this depthwise convolution."""
        return self.known(
            place,
            "depthwise_conv",
            dim,
            heads=kernel.in_channels,
            head_dim=1,
            causal=False,
            refused={"matrix": "a convolution has no queries and keys", **refused},
            options={"axes": len(kernel.kernel_size)},
        )

    def read(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        (image,) = self.arguments(site, args, kwargs).values()
        axes = site.options["axes"]
        if image.dim() != 2 + axes:
            raise ValueError(f"{site.name}: expected (B, C{', n' * axes}), got {tuple(image.shape)}")
        return Call(image.flatten(2).mT, tuple(image.shape[2:]))

    def write(self, site: Site, call: Call, mixed: Tensor) -> Tensor:
        assert call.grid is not None
        return mixed.mT.unflatten(2, call.grid)

    def sample(self, site: Site, tokens: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        length, axes = tokens.shape[1], site.options["axes"]
        fits = site.grid is not None and len(site.grid) == axes and site.length == length
        grid = site.grid if fits else (*(1,) * (axes - 1), length)
        assert grid is not None
        return (tokens.mT.unflatten(2, grid),), {}


def taps(module: Any) -> tuple[Tensor, tuple[int, ...]] | None:
    """The kernel ``(C, taps...)`` of a depthwise convolution, dilation written out, and its taps before the token.

    None where its outputs are not as many as its inputs, or it pads with other than zeros.
    """
    if module.padding_mode != "zeros":
        return None
    reach = tuple(d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True))
    if module.padding == "same":
        before = tuple(r // 2 for r in reach)
    elif module.padding == "valid":
        before = (0,) * len(reach)
    else:
        before = tuple(module.padding)
    if module.padding != "same" and any(2 * b != r for b, r in zip(before, reach, strict=True)):
        return None
    kernel = module.weight.squeeze(1)
    if any(d > 1 for d in module.dilation):
        wide = kernel.new_zeros(kernel.shape[0], *(r + 1 for r in reach))
        wide[(slice(None), *(slice(None, None, d) for d in module.dilation))] = kernel
        kernel = wide
    return kernel, before


def is_depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution of stride 1 that mixes the tokens of each channel by themselves."""
    plain = (nn.Conv1d.forward, nn.Conv2d.forward)
    if not isinstance(module, nn.Conv1d | nn.Conv2d) or type(module).forward not in plain:
        return False
    channels = module.in_channels
    alone = module.groups == channels == module.out_channels
    return alone and max(module.stride) == 1 and max(module.kernel_size) > 1


def convolved(module: Any, image: Tensor) -> Attended:
    """The matrix of a depthwise convolution.

    Raises:
        NotImplementedError: where it is not square, or pads with other than zeros.
    """
    found = taps(module)
    if found is None:
        raise NotImplementedError("a convolution whose outputs are fewer, or that pads with other than zeros")
    grid = tuple(image.shape[2:])
    matrix = Convolution(found[0], grid, found[1])

    def finish(mixed: Tensor) -> Tensor:
        out = mixed.squeeze(3).unflatten(2, grid)
        return out if module.bias is None else out + module.bias.view(-1, *(1,) * len(grid))

    return Attended(matrix, image.flatten(2).unsqueeze(3), finish)


@register_adapter
class DepthwiseConv(ChannelsFirst):
    """``nn.Conv1d`` and ``nn.Conv2d`` with one group a channel and stride 1, such as ConvNeXt's ``conv_dw``."""

    name = "depthwise_conv"
    understood = frozenset({"input"})
    probed = False

    def site(self, place: Place) -> Site | None:
        module: Any = place.module
        if not is_depthwise(module):
            return None
        refused = {}
        if taps(module) is None and module.padding_mode == "zeros":
            refused["module"] = "its outputs are not as many as its inputs"
        return self.convolution(place, module, module.in_channels, refused)

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        (image,) = self.arguments(site, args, kwargs).values()
        return convolved(module, image)


@register_adapter
class SepConv(ChannelsFirst):
    """``pwconv2(act2(dwconv(act1(pwconv1(x)))))`` over images, ConvFormer's; its matrix is that of ``dwconv``."""

    name = "sep_conv"
    understood = frozenset({"x"})

    def site(self, place: Place) -> Site | None:
        module: Any = place.module
        if parts_of(module) != {"pwconv1", "act1", "dwconv", "act2", "pwconv2"} or not is_depthwise(module.dwconv):
            return None
        dim = getattr(module.pwconv1, "in_channels", None)
        if not isinstance(dim, int) or getattr(module.pwconv2, "out_channels", None) != dim:
            return None
        return self.convolution(place, module.dwconv, dim, {})

    def attended(self, site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attended:
        (image,) = self.arguments(site, args, kwargs).values()
        found = convolved(module.dwconv, module.act1(module.pwconv1(image)))
        return found._replace(finish=lambda mixed: module.pwconv2(module.act2(found.finish(mixed))))
